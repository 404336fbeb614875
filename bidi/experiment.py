"""An experiment: every config that its gin files may set, in one tree."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import gin
import jax

from bidi import config, config_differences
from bidi.config_differences import Difference
from bidi.data.config import DataConfig
from bidi.data.folds import WithoutFold
from bidi.data.partner import Partner
from bidi.data.pipeline import BatchConfig
from bidi.data.prepared import PairSource, Prepared
from bidi.data.pseudo import pairs_beside
from bidi.data.streams import Streams
from bidi.data.vocabulary import Vocabulary
from bidi.errors import ConfigError
from bidi.evaluation.config import AgreementConfig, EvaluationConfig
from bidi.files import Name, path_of
from bidi.models.config import ModelConfig, RecurrentConfig, TransformerConfig
from bidi.models.model import Model
from bidi.models.recurrent import Recurrent
from bidi.models.transformer import Transformer
from bidi.search.config import SearchConfig
from bidi.training.config import MeshConfig, TrainingConfig
from bidi.training.mesh import Mesh
from bidi.training.optimizer import OptimizerConfig
from bidi.training.partitioner import Partitioner, Pmap
from bidi.training.step import Trainer

# What a workdir says of its run.
CONFIG_FILE = "config.gin"
DATA_FILE = "data.json"

# Where data lie, which may be another place tomorrow or on another machine.
PLACES = (
    "Data.directory",
    "ParallelText.source",
    "ParallelText.target",
    "Partner.directory",
    "Tfds.data_dir",
)


@gin.configurable("Experiment")
@dataclasses.dataclass(frozen=True)
class Experiment:
    """What `build` makes of the gin files; each part's own docstring describes it.

    Attributes:
        model: `@Transformer()` or `@Recurrent()`. All other parts are there by themselves.
        settings: what it was loaded with; an experiment made otherwise has none.
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    streams: Streams = dataclasses.field(default_factory=Streams)
    partner: Partner = dataclasses.field(default_factory=Partner)
    batches: BatchConfig = dataclasses.field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    agreement: AgreementConfig = dataclasses.field(default_factory=AgreementConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    model: ModelConfig = dataclasses.field(default_factory=TransformerConfig)
    settings: config.Settings = dataclasses.field(init=False, repr=False, compare=False)

    def pairs(self, prepared: Prepared, split: str) -> PairSource:
        """The pairs to train (`train`) or validate on, with what the partner needs.

        Raises:
            FileNotFoundError: there are no pseudo outputs.
            DataError: the pairs or the pseudo outputs are not what they should be.
        """
        pairs = pairs_beside(self.partner, prepared, split)
        if split == "train" and self.training.hold_out:
            return WithoutFold(pairs, *self.training.hold_out)
        return pairs

    def make_model(self, source: Vocabulary, target: Vocabulary) -> Model:
        """The model, for these vocabularies."""
        sizes = target.size, None if self.joint_vocabulary else source.size
        ways = len(self.streams.directions)
        if isinstance(self.model, RecurrentConfig):
            return Recurrent(self.model, ways, *sizes)
        return Transformer(self.model, ways, *sizes)

    @property
    def transformer(self) -> TransformerConfig:
        """The model's shape, for what knows of Transformers only.

        Raises:
            ConfigError: it is another model.
        """
        if not isinstance(self.model, TransformerConfig):
            raise ConfigError(
                f"Experiment.model = @{self.model.name}(), but this is for @Transformer() only"
            )
        return self.model

    @property
    def joint_vocabulary(self) -> bool:
        """Whether source and target have one vocabulary."""
        return self.data.target_vocabulary is None

    @property
    def max_source_length(self) -> int:
        """Source tokens, without marker, that a search reads: what fits a row of training.

        Where training cut its sources, a search cuts them alike.
        """
        if self.data.truncate_source:
            return self.data.max_source_length
        return self.batches.source_length - 1

    def make_trainer(self, source: Vocabulary, target: Vocabulary) -> Trainer:
        """What an update is made of, for these vocabularies."""
        return Trainer(
            model=self.make_model(source, target),
            optimizer=self.optimizer.make(),
            partner=self.partner,
            label_smoothing=self.training.label_smoothing,
            ema_decay=self.training.ema_decay,
            skips_nonfinite=self.training.skip_nonfinite > 0,
            prng_impl=self.training.prng_impl,
        )

    def make_partitioner(
        self, trainer: Trainer, devices: Sequence[jax.Device] | None = None
    ) -> Partitioner:
        """What runs the trainer's steps on all devices, or on those given.

        Raises:
            ConfigError: devices, rows or model cannot be divided so.
        """
        accumulation, rows = self.training.accumulation, self.batches.rows
        if self.training.partitioner == "mesh":
            return Mesh(trainer, self.mesh, accumulation, rows, devices)
        return Pmap(trainer, accumulation, rows, devices)


def build() -> Experiment:
    """Constructs every config by gin; ValueError where two of them contradict each other."""
    experiment = Experiment()
    _check_directions(experiment)
    _check_partner(experiment)
    _check_prior(experiment)
    _check_unused(experiment)
    return experiment


def _check_directions(experiment: Experiment) -> None:
    """Whether the streams, the model and the search fit together."""
    streams, search = experiment.streams, experiment.search
    interaction = experiment.model.interaction
    setting = f"{experiment.model.name}.interaction = {interaction!r}"
    search.make_coupling(len(streams.directions))
    if streams.ways != "both" and interaction != "none":
        raise ValueError(
            f"{setting} needs two directions, but Streams.ways = {streams.ways!r}; use 'both', or "
            "interaction 'none'"
        )
    if search.coupling != "none" and interaction == "none":
        raise ValueError(
            f"Search.coupling = {search.coupling!r} couples streams that read each other, but "
            f"{setting}; use coupling 'none'"
        )
    if search.partner_weights != "equal" and search.coupling != "product":
        raise ValueError(
            f"Search.partner_weights = {search.partner_weights!r} is for Search.coupling = "
            f"'product', where a hypothesis has several partners, but it is {search.coupling!r}"
        )
    if streams.layout == "halves" and streams.ways != "both":
        raise ValueError(
            f"Streams.layout = 'halves' is written from both ends, but Streams.ways = "
            f"{streams.ways!r}; use 'both'"
        )
    if (streams.layout == "halves") != (search.coupling == "joint"):
        raise ValueError(
            f"Streams.layout = {streams.layout!r} and Search.coupling = {search.coupling!r} do not "
            "fit: halves are searched by 'joint', and nothing else is"
        )


def _check_partner(experiment: Experiment) -> None:
    """Whether there are streams that read another's text."""
    kind = experiment.partner.kind
    if kind != "gold" and experiment.model.interaction == "none":
        raise ValueError(
            f"Partner.kind = {kind!r} is for streams that read each other, but "
            f"{experiment.model.name}.interaction = 'none'; use kind 'gold'"
        )
    if kind == "pseudo" and experiment.streams.layout == "halves":
        raise ValueError(
            "Partner.kind = 'pseudo' is for whole streams, but Streams.layout = 'halves', which "
            "show no labels; use kind 'gold'"
        )


def _check_prior(experiment: Experiment) -> None:
    """Whether words of the source are words of the target."""
    if experiment.model.copy_prior and not experiment.joint_vocabulary:
        raise ValueError(
            f"{experiment.model.name}.copy_prior = True makes the source's tokens likelier in the "
            "output, but Data.target_vocabulary is a vocabulary of its own; leave it out, so that "
            "there is a joint one, or set copy_prior = False"
        )


def _check_unused(experiment: Experiment) -> None:
    """Whether anything was set that nothing would look at."""
    model, partitioner = experiment.model, experiment.training.partitioner
    if partitioner != "mesh" and (changed := _changed(experiment.mesh)):
        raise ValueError(
            f"Mesh.{changed[0]} = {getattr(experiment.mesh, changed[0])!r} is for "
            f"Training.partitioner = 'mesh', but it is {partitioner!r}"
        )
    if not isinstance(model, TransformerConfig):
        return
    if model.own_decoders and experiment.streams.ways != "both":
        raise ValueError(
            "Transformer.own_decoders = True gives each of two directions its own, but "
            f"Streams.ways = {experiment.streams.ways!r}"
        )
    changed = [n for n in _changed(model) if n in ("fusion", "fusion_weight", "future_dropout")]
    if "fusion_weight" in changed and model.fusion not in ("tanh", "linear"):
        raise ValueError(
            f"Transformer.fusion_weight = {model.fusion_weight} is for Transformer.fusion = 'tanh' "
            f"and 'linear', but it is {model.fusion!r}"
        )
    if changed and model.interaction == "none":
        raise ValueError(
            f"Transformer.{changed[0]} = {getattr(model, changed[0])!r} is for streams that read "
            "each other, but Transformer.interaction = 'none'"
        )


def _changed(part: MeshConfig | TransformerConfig) -> list[str]:
    """The fields that are not as they are by themselves; made anew, gin would fill them in too."""
    fields = dataclasses.fields(part)
    return [field.name for field in fields if getattr(part, field.name) != field.default]


def differences(old_text: str, new_text: str) -> list[Difference]:
    """What differs between the configs of two experiments; of two models, only which they are."""
    found = config_differences.differences(old_text, new_text)
    if not any(difference.name == "Experiment.model" for difference in found):
        return found
    shapes = (f"{TransformerConfig.name}.", f"{RecurrentConfig.name}.")
    return [difference for difference in found if not difference.name.startswith(shapes)]


def load(
    files: Sequence[str | os.PathLike[str]],
    bindings: Sequence[str],
    texts: Mapping[str, str] | None = None,
) -> Experiment:
    """The experiment of gin files, bindings and texts, see `config.load`."""
    experiment, settings = config.load(build, files, bindings, texts)
    # Known only once it is built, and frozen.
    object.__setattr__(experiment, "settings", settings)
    return experiment


def load_run(workdir: str, bindings: Sequence[str]) -> Experiment:
    """The experiment that a workdir was trained with, with changed values if any.

    Raises:
        FileNotFoundError: it is no workdir of a training run.
    """
    return load([config_file(workdir)], bindings)


def config_file(workdir: str) -> str:
    """The gin file of the experiment that a workdir was trained with.

    Raises:
        FileNotFoundError: it is no workdir of a training run.
    """
    path = path_of(workdir) / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{workdir} holds no {CONFIG_FILE}: it is no workdir of bidi.train")
    return str(path)


def data_identity(workdir: Name) -> dict[str, Any]:
    """What identifies the data and the vocabularies that a workdir's model was trained on.

    Raises:
        FileNotFoundError: it is no workdir.
    """
    path = path_of(workdir) / DATA_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{workdir} is no workdir of bidi.train: it holds no {DATA_FILE}")
    return json.loads(path.read_text())
