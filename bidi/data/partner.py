"""What a stream reads of the other stream in training."""

import dataclasses
from typing import Literal

import gin

from bidi import ranges


@gin.configurable("Pseudo")
@dataclasses.dataclass(frozen=True)
class PseudoRecipe:
    """How pseudo outputs are made; see `bidi.pseudo`.

    Attributes:
        labeller_files: gin files that the labellers are trained with: one of a model that writes
            both directions, or one for each direction. Where the data are is taken from here.
        labeller_bindings: gin statements that change all of them, like `'STEPS = 3000'`.
        folds: parts of the training pairs, each labelled by models that never saw it; 1: one
            labeller, trained on everything, labels everything.
    """

    labeller_files: tuple[str, ...] = gin.REQUIRED
    labeller_bindings: tuple[str, ...] = ()
    folds: int = 1

    def __post_init__(self):
        ranges.check(self, "Pseudo", "folds", least=1)


@gin.configurable("Partner")
@dataclasses.dataclass(frozen=True)
class Partner:
    """What the other stream shows while a stream learns.

    Attributes:
        kind: `gold`, the other stream's own text, which in its second half shows the labels;
            `pseudo`, what a model wrote: an example becomes two, gold L2R beside pseudo R2L and
            pseudo L2R beside gold R2L (SB-NMT); `predicted`, what the model itself guesses for each
            token of the other stream when it reads the gold tokens before it, the source, and
            nothing of this stream.
        directory: of `pseudo`: where the outputs are; may contain `$VAR` and `~`.
        loss_on_pseudo: whether the pseudo streams are learnt too.
        recipe: how `bidi.pseudo` makes them; None: as its flags say.
        predicted_from: of `predicted`: updates after which the first guesses come, in place of gold
            tokens; their share grows evenly from here on.
        predicted_until: updates after which all tokens are guesses.
        corrupted: share of the tokens, gold or guesses, in whose place stands any text token, drawn
            evenly from the vocabulary.
    """

    kind: Literal["gold", "pseudo", "predicted"] = "gold"
    directory: str = ""
    loss_on_pseudo: bool = False
    recipe: PseudoRecipe | None = None
    predicted_from: int = 0
    predicted_until: int = 0
    corrupted: float = 0.0

    def __post_init__(self):
        for kind, names in _FIELDS.items():
            for name in names:
                if self.kind != kind and getattr(self, name):
                    raise ValueError(
                        f"Partner.{name} = {getattr(self, name)!r} is for Partner.kind = {kind!r}, "
                        f"but Partner.kind = {self.kind!r}: leave it out, or change the kind"
                    )
        if self.kind == "pseudo" and not self.directory:
            raise ValueError(
                "Partner.kind = 'pseudo' needs Partner.directory: where python -m bidi.pseudo "
                "wrote, or shall write, the outputs"
            )
        if not 0 <= self.predicted_from <= self.predicted_until:
            raise ValueError(
                f"Partner.predicted_from = {self.predicted_from} and Partner.predicted_until = "
                f"{self.predicted_until} must be numbers of updates, the first at most the second"
            )
        ranges.check(self, "Partner", "corrupted", least=0, below=1)


# What only one kind has.
_FIELDS = {
    "pseudo": ("directory", "loss_on_pseudo", "recipe"),
    "predicted": ("predicted_from", "predicted_until", "corrupted"),
}

GOLD = Partner()
