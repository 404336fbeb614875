"""What the other stream reads in training."""

import dataclasses
from typing import Literal

import gin


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
        if self.folds < 1:
            raise ValueError(f"Pseudo.folds = {self.folds} must be at least 1")


@gin.configurable("Partner")
@dataclasses.dataclass(frozen=True)
class Partner:
    """What the other stream reads in training.

    Attributes:
        kind: `gold`, the reference, which in its second half shows the labels; `pseudo`, what a
            model wrote: an example becomes two, gold L2R beside pseudo R2L and pseudo L2R beside
            gold R2L (SB-NMT).
        directory: where the pseudo outputs are; may contain `$VAR` and `~`.
        loss_on_pseudo: whether the pseudo streams are learnt too.
        recipe: how `bidi.pseudo` makes them; None: as its flags say.
    """

    kind: Literal["gold", "pseudo"] = "gold"
    directory: str = ""
    loss_on_pseudo: bool = False
    recipe: PseudoRecipe | None = None

    def __post_init__(self):
        if self.kind == "pseudo" and not self.directory:
            raise ValueError(
                "Partner.kind = 'pseudo' needs Partner.directory: where python -m bidi.pseudo "
                "wrote, or shall write, the outputs"
            )
        if self.kind != "pseudo" and (self.directory or self.loss_on_pseudo or self.recipe):
            raise ValueError(
                "Partner.directory, loss_on_pseudo and recipe are for Partner.kind = 'pseudo', "
                f"but it is {self.kind!r}"
            )


GOLD = Partner()
