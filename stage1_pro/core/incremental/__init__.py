"""Stage-wise admission of training cases: who is admitted, and the machine of the stages. No Lightning here."""
