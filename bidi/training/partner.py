"""Predicted partners: what a stream shows the other is what the model guesses of it, not gold.

Of gold text, each stream of a pair would read in its second half the very labels that it must
predict. So a first pass, without interaction and without gradient, guesses each stream's tokens
from its own gold history, and a second pass reads these guesses where it reads the other stream.
The guesses of a step still come from gold tokens before it: scheduled sampling (Bengio et al. 2015)
by two passes, as in Mihaylova and Martins 2019, but of the partner's inputs alone.

Letters: B batch, W ways, T target steps, N tokens of a chunk, D model, V vocabulary.
"""

import flax.struct
import jax
import jax.numpy as jnp

from bidi.data.partner import Partner
from bidi.models.model import Batch, Model, most_examples
from bidi.models.output import Output, project
from bidi.tokens import FIRST_TEXT_ID
from bidi.training.chunks import scan_chunks

# By what an update's draws differ: dropout of the source and of both passes, and mixing.
_SOURCE, _GUESS, _MIXING, _BESIDE = range(4)


@flax.struct.dataclass
class Update:
    """What an update's draws depend on.

    Attributes:
        rng: of dropout and of mixing.
        number: int32, updates before it.
    """

    rng: jax.Array
    number: jax.Array


def beside_guesses(
    partner: Partner, model: Model, params: dict, batch: Batch, update: Update | None
) -> tuple[jax.Array, Output]:
    """Both passes, over sources that are encoded once; like `Model.unprojected`.

    Args:
        partner: what is mixed with the guesses, and when.
        model: of two directions that interact.
        params: its parameters.
        batch: the batch dict.
        update: None for no dropout, guesses throughout, and nothing corrupted.

    Returns:
        States [B, W, T, D] and what makes logits of them.
    """

    def apply(number, params, *arguments, **options):
        rngs = None if update is None else {"dropout": jax.random.fold_in(update.rng, number)}
        train = update is not None
        return model.apply({"params": params}, *arguments, **options, train=train, rngs=rngs)

    source = apply(_SOURCE, params, batch, examples=most_examples(batch), method="start")
    still = jax.lax.stop_gradient((params, source))
    states_BWTD, output = apply(_GUESS, *still, batch, interact=False, method="unprojected_of")
    shown_BWT = inputs_of(guess(states_BWTD, output), batch)
    if update is not None:
        share = share_of_guesses(partner, update.number)
        rng = jax.random.fold_in(update.rng, _MIXING)
        vocabulary = len(output.table_VD)
        shown_BWT = mixed(shown_BWT, batch, share, partner.corrupted, vocabulary, rng)
    return apply(_BESIDE, params, source, batch, shown_BWT, method="unprojected_beside")


def guess(states_BWTD: jax.Array, output: Output) -> jax.Array:
    """The likeliest text of each state, int32 [B, W, T]; never a marker: the stream would end."""

    def of_chunk(occurs_EV, chunk):
        states_ND, example_N = chunk
        text_logits_NV = project(states_ND, output.of_states(example_N, occurs_EV))[
            :, FIRST_TEXT_ID:
        ]
        return None, jnp.argmax(text_logits_NV, axis=-1).astype(jnp.int32) + FIRST_TEXT_ID

    tokens = states_BWTD.reshape(-1, states_BWTD.shape[-1]), output.example()
    return scan_chunks(of_chunk, None, tokens, output.occurs())[1].reshape(states_BWTD.shape[:-1])


def is_text(batch: Batch) -> jax.Array:
    """Where inputs are text, bool [B, W, T]: neither padding nor the marker before a target."""
    return (batch["segments"] != 0) & (batch["positions"] != 0)


def inputs_of(labels_BWT: jax.Array, batch: Batch) -> jax.Array:
    """The inputs of streams with these labels: the label of a step is read at the next."""
    return jnp.where(is_text(batch), jnp.roll(labels_BWT, 1, axis=-1), batch["inputs"])


def share_of_guesses(partner: Partner, updates: jax.Array) -> jax.Array:
    """The probability that a token is a guess and not gold, after so many updates; float32."""
    growing = max(partner.predicted_until - partner.predicted_from, 1)
    share = jnp.clip((updates - partner.predicted_from) / growing, 0.0, 1.0)
    return jnp.where(updates >= partner.predicted_until, 1.0, share)


def mixed(
    guess_inputs_BWT: jax.Array,
    batch: Batch,
    share: jax.Array,
    corrupted: float,
    vocabulary: int,
    rng: jax.Array,
) -> jax.Array:
    """Guesses, gold and corrupted tokens, each token for itself.

    Args:
        guess_inputs_BWT: see `inputs_of`.
        batch: the batch dict with the gold `inputs`.
        share: the probability of a guess.
        corrupted: the probability that a text token, gold or a guess, gives way to any other.
        vocabulary: V.
        rng: of all draws.

    Returns:
        int32 [B, W, T].
    """
    of_guess, of_corruption, of_text = jax.random.split(rng, 3)
    shape = guess_inputs_BWT.shape
    guessed = jax.random.bernoulli(of_guess, share, shape)
    tokens_BWT = jnp.where(guessed, guess_inputs_BWT, batch["inputs"])
    broken = jax.random.bernoulli(of_corruption, corrupted, shape) & is_text(batch)
    text_BWT = jax.random.randint(of_text, shape, FIRST_TEXT_ID, vocabulary)
    return jnp.where(broken, text_BWT, tokens_BWT)
