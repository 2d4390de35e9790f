"""Beam search with cached keys and values, compiled with static shapes.

The search space of a sentence is every sequence of at most
`max_decode_length` pieces that ends in eos; pad and bos are never in it. A
hypothesis scores log P(pieces) / ((5 + length) / 6)^alpha, its length counting
the eos (Wu et al. 2016, without the coverage term).
"""

import functools
import math

import keras
import numpy as np
from keras import ops

from examples.translation.devices import host_has_xla
from examples.translation.devices import undistributed
from examples.translation.errors import notice

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
elif keras.backend.backend() == "jax":
    import jax

PAD_ID = 0


def beam_search(
    model,
    source_ids,
    *,
    beam_size,
    length_penalty,
    max_decode_length,
    bos_id=1,
    eos_id=2,
):
    """Translates a batch; traceable by `tf.function` and `jax.jit`.

    Each step extends the `beam_size` live hypotheses of a sentence by one
    piece. Of the likeliest `2 * beam_size` extensions, those that end in eos
    and are among the first `beam_size` finish; the likeliest others live on. A
    sentence is done when `beam_size` hypotheses have finished, or when no live
    one could still score better than the best finished one. So the first
    hypothesis returned is the best one met, one beam is greedy search, and a
    beam as large as the search space finds its optimum.

    A sentence's result does not depend on the rest of its batch, nor, but for
    rounding, on its padding.

    Args:
        model: A built `Transformer`.
        source_ids: int32 `(B, S)`, padded with 0. Rows without any piece are
            skipped.
        beam_size: Live hypotheses a sentence, K, at least 1.
        length_penalty: alpha, at least 0.
        max_decode_length: L, the pieces of the longest hypothesis with its
            eos. The last one is always eos.
        bos_id: What the decoder starts from.
        eos_id: What ends a hypothesis.

    Returns:
        `ids` int32 `(B, K, L)`, each hypothesis with its eos and then 0, and
        `scores` float32 `(B, K)`, the best first. Where fewer than K
        hypotheses finished, the rest are all 0 with score -inf.

    Raises:
        ValueError: An argument is out of range.
    """
    _check_at_least("beam_size", beam_size, 1)
    _check_at_least("length_penalty", length_penalty, 0)
    _check_at_least("max_decode_length", max_decode_length, 1)

    source_ids = ops.cast(source_ids, "int32")
    batch_size, source_length = ops.shape(source_ids)
    source_segments = ops.cast(source_ids != PAD_ID, "int32")
    memory = model.encode(
        source_ids, source_segments, ops.arange(source_length)[None, :]
    )
    memories = model.decoder.project(memory)

    pieces = np.arange(model.vocab_size)
    last = pieces == eos_id
    before_last = (
        (pieces < model.piece_count) & (pieces != PAD_ID) & (pieces != bos_id)
    )
    penalties = (
        ((5 + np.arange(1, max_decode_length + 1)) / 6) ** length_penalty
    ).astype("float32")

    def step(state):
        index = state["index"]
        logits, caches = model.decode_step(
            ops.reshape(state["pieces"], (-1,)),
            index,
            memories,
            source_segments,
            state["caches"],
        )
        allowed = ops.where(index < max_decode_length - 1, before_last, last)
        log_probs = ops.where(allowed, ops.log_softmax(logits), -np.inf)
        log_probs = state["live_log_probs"][:, :, None] + ops.reshape(
            log_probs, (-1, beam_size, model.vocab_size)
        )
        # The candidates, (B, 2K), best first. Each beam has one eos, so at
        # least K of them do not end.
        log_probs, flat = ops.top_k(
            ops.reshape(log_probs, (-1, beam_size * model.vocab_size)),
            2 * beam_size,
        )
        parents = flat // model.vocab_size
        next_pieces = flat % model.vocab_size
        ids = ops.where(
            np.arange(max_decode_length) == index,
            next_pieces[:, :, None],
            _gather_beams(state["live_ids"], parents),
        )
        ends = next_pieces == eos_id

        finishes = ends & (np.arange(2 * beam_size) < beam_size)
        penalty = ops.take(penalties, index)
        finished_scores, chosen = ops.top_k(
            ops.concatenate(
                [
                    state["finished_scores"],
                    ops.where(finishes, log_probs / penalty, -np.inf),
                ],
                axis=1,
            ),
            beam_size,
        )
        finished_ids = _gather_beams(
            ops.concatenate([state["finished_ids"], ids], axis=1), chosen
        )
        finished_ids = ops.where(
            finished_scores[:, :, None] > -np.inf, finished_ids, PAD_ID
        )
        # A sentence that was done stays as it was, so that it does not
        # matter how long the others of its batch take.
        done = state["done"]
        finished_scores = ops.where(
            done[:, None], state["finished_scores"], finished_scores
        )
        finished_ids = ops.where(
            done[:, None, None], state["finished_ids"], finished_ids
        )

        live_log_probs, chosen = ops.top_k(
            ops.where(ends, -np.inf, log_probs), beam_size
        )
        parents = _gather_beams(parents, chosen)
        # Log-probabilities only fall and the penalty only grows, so this is
        # the most that a live hypothesis can still score.
        bound = live_log_probs[:, 0] / penalties[-1]
        return {
            "index": index + 1,
            "pieces": _gather_beams(next_pieces, chosen),
            "live_ids": _gather_beams(ids, chosen),
            "live_log_probs": live_log_probs,
            "finished_ids": finished_ids,
            "finished_scores": finished_scores,
            "done": done
            | (finished_scores[:, -1] > -np.inf)
            | (bound <= finished_scores[:, 0]),
            "caches": [
                [_gather_caches(cache, parents) for cache in layer_caches]
                for layer_caches in caches
            ],
        }

    no_ids = ops.full(
        (batch_size, beam_size, max_decode_length), PAD_ID, dtype="int32"
    )
    no_scores = ops.full((batch_size, beam_size), -np.inf, dtype="float32")
    state = {
        "index": ops.convert_to_tensor(0, dtype="int32"),
        "pieces": ops.full((batch_size, beam_size), bos_id, dtype="int32"),
        "live_ids": no_ids,
        # All beams start alike: only the first may be extended.
        "live_log_probs": ops.where(np.arange(beam_size) == 0, 0.0, no_scores),
        "finished_ids": no_ids,
        "finished_scores": no_scores,
        "done": ops.all(source_ids == PAD_ID, axis=1),
        "caches": model.new_caches(batch_size * beam_size, max_decode_length),
    }
    state = ops.while_loop(
        lambda state: ops.logical_not(ops.all(state["done"])),
        step,
        state,
        maximum_iterations=max_decode_length,
    )
    return state["finished_ids"], state["finished_scores"]


def _check_at_least(name, value, minimum):
    if value < minimum:
        raise ValueError(
            f"Argument `{name}` must be at least {minimum}. Received: "
            f"{name}={value}"
        )


def _gather_beams(x, beams):
    """`x` `(B, M, ...)`, `beams` int32 `(B, K)` -> `(B, K, ...)`."""
    rows, available = ops.shape(x)[0], x.shape[1]
    flat = beams + available * ops.arange(rows)[:, None]
    x = ops.reshape(x, (-1, *x.shape[2:]))
    return ops.take(x, flat, axis=0)


def _gather_caches(cache, beams):
    """`cache` `(B * K, ...)`, `beams` `(B, K)` -> `(B * K, ...)`."""
    beam_size = beams.shape[1]
    if beam_size == 1:
        return cache
    rest = cache.shape[1:]
    cache = ops.reshape(cache, (-1, beam_size, *rest))
    return ops.reshape(_gather_beams(cache, beams), (-1, *rest))


def compile_search(model, **options):
    """Compiles `beam_search(model, source_ids, **options)` for the backend.

    The result compiles once for each shape of `source_ids` and always uses the
    model's present weights.

    Returns:
        A function from `(B, S)` int32 to `ids` and `scores`, NumPy arrays.
    """
    search = functools.partial(beam_search, model, **options)
    if keras.backend.backend() == "tensorflow":
        strategy = model.distribute_strategy
        if isinstance(strategy, tf.distribute.TPUStrategy):

            def search_on_tpu(source_ids):
                # Every core finds the same.
                found = strategy.run(search, args=(source_ids,))
                return [
                    strategy.experimental_local_results(result)[0]
                    for result in found
                ]

            run = tf.function(search_on_tpu)
        else:
            run = tf.function(search, jit_compile=host_has_xla())
    elif keras.backend.backend() == "jax":

        def stateless_search(values, source_ids):
            mapping = zip(model.variables, values, strict=True)
            # How the training lays out rows does not hold for beams.
            with undistributed(), keras.StatelessScope(state_mapping=mapping):
                return search(source_ids)

        stateless_search, parts = _shared_out(stateless_search)

        def run(source_ids):
            values = [variable.value for variable in model.variables]
            rows = len(source_ids)
            filled = np.pad(source_ids, ((0, -rows % parts), (0, 0)))
            return [
                np.asarray(found)[:rows]
                for found in stateless_search(values, filled)
            ]

    else:
        run = search

    def compiled(source_ids):
        ids, scores = run(np.asarray(source_ids, "int32"))
        return ops.convert_to_numpy(ids), ops.convert_to_numpy(scores)

    return compiled


def _shared_out(search):
    """Compiles a stateless search so that each device takes part of the rows.

    All processes give it the same rows, do their parts, and get all results.

    Returns:
        The compiled function, and what the number of rows must be a multiple
        of.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return jax.jit(search), 1
    mesh = distribution.device_mesh.backend_mesh
    axis = distribution.batch_dim_name
    everywhere = jax.sharding.PartitionSpec()
    part = jax.sharding.PartitionSpec(axis)
    # Over this axis no search needs another's rows; how weights are split
    # over others is left to the compiler.
    search = jax.shard_map(
        search,
        mesh=mesh,
        in_specs=(everywhere, part),
        out_specs=part,
        axis_names={axis},
        check_vma=False,
    )
    replicated = jax.sharding.NamedSharding(mesh, everywhere)
    return jax.jit(search, out_shardings=replicated), mesh.shape[axis]


class Translator:
    """Translates sentences with a bounded number of compiled programs.

    A sentence goes into the shortest bucket that holds its pieces, so that its
    translation does not depend on its company. Each bucket is one program, for
    `(batch_size, bucket)`; batches are filled up with empty rows.

    Args:
        model: A built `Transformer`.
        tokenizer: Joint tokenizer of source and target.
        beam_size: Beams.
        length_penalty: alpha of `beam_search`.
        bucket_lengths: Source lengths, in pieces with eos. A sentence longer
            than all of them is cut, and a notice says so.
        batch_size: Sentences of a batch.
        max_decode_length: Longest translation, in pieces with eos. It never is
            longer than its bucket and 50 more, as in the paper.
    """

    def __init__(
        self,
        model,
        tokenizer,
        *,
        beam_size=4,
        length_penalty=0.6,
        bucket_lengths=(16, 32, 64, 128, 256),
        batch_size=32,
        max_decode_length=None,
    ):
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.searches = {
            length: compile_search(
                model,
                beam_size=beam_size,
                length_penalty=length_penalty,
                max_decode_length=min(
                    length + 50, max_decode_length or math.inf
                ),
                bos_id=tokenizer.bos_id,
                eos_id=tokenizer.eos_id,
            )
            for length in bucket_lengths
        }

    def translate(self, sentences):
        """Returns the best translation of each sentence, in their order.

        A blank sentence has an empty translation.

        Args:
            sentences: List of strings.
        """
        return [best for ((best, _),) in self.hypotheses(sentences, n_best=1)]

    def hypotheses(self, sentences, n_best):
        """Returns the best translations of each sentence with their scores.

        Args:
            sentences: List of strings.
            n_best: How many of each, at most `beam_size`.

        Returns:
            List of lists of `(translation, score)`, the best first. Where
            fewer hypotheses finished, there are fewer.
        """
        longest = max(self.searches)
        encoded = self.tokenizer.encode(sentences)
        rows_of = {length: [] for length in sorted(self.searches)}
        cut = 0
        for row, (sentence, ids) in enumerate(
            zip(sentences, encoded, strict=True)
        ):
            if not sentence.strip():
                continue
            if len(ids) > longest:
                cut += 1
                encoded[row] = ids = [
                    *ids[: longest - 1],
                    self.tokenizer.eos_id,
                ]
            rows_of[next(n for n in rows_of if n >= len(ids))].append(row)
        if cut:
            notice(
                f"{cut:,} of {len(sentences):,} sentences are longer than "
                f"{longest} pieces; only their beginning is translated."
            )
        found = [[("", 0.0)] for _ in sentences]
        for length, rows in rows_of.items():
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                source_ids = np.full((self.batch_size, length), PAD_ID, "int32")
                for i, row in enumerate(batch):
                    source_ids[i, : len(encoded[row])] = encoded[row]
                ids, scores = self.searches[length](source_ids)
                for i, row in enumerate(batch):
                    finished = scores[i, :n_best] > -np.inf
                    finished[0] = True  # even of a model that gives NaN
                    found[row] = list(
                        zip(
                            self.tokenizer.decode(ids[i, :n_best][finished]),
                            scores[i, :n_best][finished].tolist(),
                            strict=True,
                        )
                    )
        return found
