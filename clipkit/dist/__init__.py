"""Ranks: who am I, who are the others, and the few collectives whose gradients clipkit relies on.

Lives here: `env.py` (rank and world size from torchrun, SLURM or nothing; no torch), `group.py`
(the process group, and the side channel by which a failing rank ends the others), `watchdog.py`
(ends a run that hangs and names the rank; `beats.py` is what ranks tell and how it is judged),
`collectives.py`
(gather rows and sum over ranks, each with the backward that adds over ranks), `ray.py` (starts Ray
for tasks that ask for it, no ranks).
Imports torch and `errors` only.
"""
