"""The main job end to end: audit, run folder, explanation, cleaned export."""

from whence.audit.attacking import AttackRun, attack_data
from whence.audit.bench import Bench, Draw, Watch
from whence.audit.clean import clean
from whence.audit.comparison import CompareSettings, compare_data
from whence.audit.evaluation import EvaluateSettings, evaluate_run
from whence.audit.explain import Query, explain
from whence.audit.folder import Run, open_run, reload_data, reload_task, write_run
from whence.audit.job import METHODS, Audit, UserModel, audit, train_rows_of
from whence.audit.mismatch import MismatchSettings, mismatch_data

__all__ = [
    "METHODS",
    "AttackRun",
    "Audit",
    "Bench",
    "CompareSettings",
    "Draw",
    "EvaluateSettings",
    "MismatchSettings",
    "Query",
    "Run",
    "UserModel",
    "Watch",
    "attack_data",
    "audit",
    "clean",
    "compare_data",
    "evaluate_run",
    "explain",
    "mismatch_data",
    "open_run",
    "reload_data",
    "reload_task",
    "train_rows_of",
    "write_run",
]
