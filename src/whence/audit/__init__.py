"""The main job end to end: audit, run folder, explanation, cleaned export."""

from whence.audit.again import AgainSettings
from whence.audit.attacking import AttackRun, attack_data
from whence.audit.bench import Bench, Draw, Watch
from whence.audit.clean import check_output, clean, write_rows
from whence.audit.cleansing import CleanseSettings, cleanse_run
from whence.audit.comparison import CompareSettings, compare_data
from whence.audit.evaluation import EvaluateSettings, evaluate_run
from whence.audit.explain import Query, explain
from whence.audit.folder import Run, check_decisions, open_run, reload_data, reload_task, write_run
from whence.audit.job import METHODS, Audit, UserModel, audit, train_rows_of
from whence.audit.learning import LearningSettings, learn_run
from whence.audit.mismatch import MismatchSettings, mismatch_data
from whence.audit.pruning import PruneSettings, prune_run
from whence.audit.relabelling import RelabelSettings, relabel_run
from whence.audit.separating import SourceSettings, source_run
from whence.audit.texts import Texts, read_texts
from whence.audit.words import WordsSettings, count_lists, words_data

__all__ = [
    "METHODS",
    "AgainSettings",
    "AttackRun",
    "Audit",
    "Bench",
    "CleanseSettings",
    "CompareSettings",
    "Draw",
    "EvaluateSettings",
    "LearningSettings",
    "MismatchSettings",
    "PruneSettings",
    "Query",
    "RelabelSettings",
    "Run",
    "SourceSettings",
    "Texts",
    "UserModel",
    "Watch",
    "WordsSettings",
    "attack_data",
    "audit",
    "check_decisions",
    "check_output",
    "clean",
    "cleanse_run",
    "compare_data",
    "count_lists",
    "evaluate_run",
    "explain",
    "learn_run",
    "mismatch_data",
    "open_run",
    "prune_run",
    "read_texts",
    "relabel_run",
    "reload_data",
    "reload_task",
    "source_run",
    "train_rows_of",
    "words_data",
    "write_rows",
    "write_run",
]
