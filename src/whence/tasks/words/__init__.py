"""Word vectors: text as training examples of skip-gram, training that can be replayed, and what can be asked."""

from whence.tasks.words.corpus import WordCorpus, word_corpus
from whence.tasks.words.embedding import WordEmbedding, load_words, train_words
from whence.tasks.words.measurements import WordSimilarity
from whence.tasks.words.skipgram import NegativeSampling, SkipGram
from whence.tasks.words.training import WordTraining
from whence.tasks.words.vocabulary import Vocabulary, split_sentences, split_words

__all__ = [
    "NegativeSampling",
    "SkipGram",
    "Vocabulary",
    "WordCorpus",
    "WordEmbedding",
    "WordSimilarity",
    "WordTraining",
    "load_words",
    "split_sentences",
    "split_words",
    "train_words",
    "word_corpus",
]
