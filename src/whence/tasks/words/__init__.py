"""Word vectors: text as training examples of skip-gram, training that can be replayed, and what can be asked."""

from whence.tasks.words.corpus import WordCorpus, word_corpus
from whence.tasks.words.embedding import WordEmbedding, load_words, train_words
from whence.tasks.words.geometry import WordClusters, clusters, word_map
from whence.tasks.words.measurements import ClusterMembership, WordSimilarity
from whence.tasks.words.skipgram import NegativeSampling, SkipGram
from whence.tasks.words.training import WordTraining
from whence.tasks.words.vocabulary import Vocabulary, split_sentences, split_words

__all__ = [
    "ClusterMembership",
    "NegativeSampling",
    "SkipGram",
    "Vocabulary",
    "WordClusters",
    "WordCorpus",
    "WordEmbedding",
    "WordSimilarity",
    "WordTraining",
    "clusters",
    "load_words",
    "split_sentences",
    "split_words",
    "train_words",
    "word_corpus",
    "word_map",
]
