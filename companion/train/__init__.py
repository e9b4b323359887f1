"""Training: a loop that can be killed at any step and resumed, on one device or several."""

from companion.train.batches import Rows
from companion.train.decay import decay_groups
from companion.train.evaluate import error_rate, evaluating, misclassified
from companion.train.fitting import fit
from companion.train.loop import History, Snapshot
from companion.train.members import MembersHistory, clip_members, fit_members
from companion.train.norms import convert_sync_batchnorm, update_bn
from companion.train.optimiser_state import split_optimiser_state
from companion.train.refinement import Refinement
from companion.train.rows import data_parallel
from companion.train.run_differences import differences
from companion.train.schedules import cosine, step_decay
from companion.train.seeding import seeded
from companion.train.team import Team, connected

__all__ = [
    "History",
    "MembersHistory",
    "Refinement",
    "Rows",
    "Snapshot",
    "Team",
    "clip_members",
    "connected",
    "convert_sync_batchnorm",
    "cosine",
    "data_parallel",
    "decay_groups",
    "differences",
    "error_rate",
    "evaluating",
    "fit",
    "fit_members",
    "misclassified",
    "seeded",
    "split_optimiser_state",
    "step_decay",
    "update_bn",
]
