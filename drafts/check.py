import sys; sys.path[:0] = ["/work/main", "/work/main/.research/draft", "/work/main/.research"]
import numpy as np, time, torch
from refit import *; from calibrators import *; from dirichlet import *; from frontier import *; from ensemble_head import *
from stage1_pro.core.metrics.exits import count_exits
rng = np.random.default_rng(0); n = 8000; y = (rng.random(n) < .1).astype(int); z = rng.normal(3 * y - 1.8, 1.2); h = rng.normal(0, 1, (n, 20)) + y[:, None] * .4; h[:, 0] = 0
g = refit_gate(gate_inputs(h, z), y, 0); print("refit", g.bias, np.corrcoef(g.out_of_fold, g.logit(gate_inputs(h, z)))[0, 1])
a = (z >= 0).astype(int); s = gate_logit(z, g.out_of_fold); ref = np.abs(z); q = np.empty(n)
for c in (0, 1): q[a == c] = fit_quantile_map(s[a == c], ref[a == c])(s[a == c])
print("mapped quantiles match", [float(np.abs(np.sort(q[a == c]) - np.sort(ref[a == c])).max()) for c in (0, 1)])
print("tilt", guarded_tilt(q, ref, a, y, 1200, .05, .05), predicted_end(q, a, y, 1200, .05, .05), predicted_end(ref, a, y, 1200, .05, .05))
w = class_weights(y); i = a == 1; print(fit_platt(s[i], (y[i] == 1).astype(int), w[i]), len(fit_isotonic(s[i], (y[i] == 1).astype(int), w[i]).x))
for k in (True, False):
    d = fit_dirichlet(z, y, 0, k); print(d, "answers kept", float(((d.logit(z) >= 0) == (z >= 0)).mean()))
d = fit_dirichlet(z, y, 0); conf = 1 / (1 + np.exp(-np.abs(d.logit(z)))); P = frontier_pairs(q, conf, a, y, 1200, .05); print("pairs", P.shape, (P[:, 1] > .5).sum())
l1, l2 = np.unique(rng.choice(q, 9)), np.unique(rng.choice(conf, 5)); c = count_pairs(q, conf, a, y, l1, l2)
for m in range(9):
    for j in range(5):
        e = (q >= l1[m]) & (conf >= l2[j]); assert c.exited[m, j] == e.sum() and c.misses[m, j] == (e & (y == 1) & (a == 0)).sum() and c.false_alarms[m, j] == (e & (y == 0) & (a == 1)).sum()
m = EnsembleHead(12, 2, 4, .3).eval(); x = torch.randn(5, 12); o = m(x); k = 2
print(o.shape, float((o[:, k] - (torch.relu(x @ m.first.weight[k*768:(k+1)*768].T + m.first.bias[k*768:(k+1)*768]) @ m.weight[k] + m.bias[k])).abs().max()))
