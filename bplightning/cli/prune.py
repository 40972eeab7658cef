"""`prune`: a fine-tuned model is pruned without training, by a part of `fit`'s options."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from bplightning.cli.parser import PluginArgument, PluginParser
from bplightning.cli.training import PruningCLI, SavesConfigOf
from bplightning.cli.training_options import PLUGINS
from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.plugins import STRATEGIES, TASKS, load
from bplightning.stages.alignment import Alignment
from bplightning.stages.one_shot import EXAMPLES, MODEL, prune
from bplightning.training.appending_csv_logger import GrowingCSVLogger
from bplightning.training.module import PruningModule

DESCRIPTION = (
    "Prune a fine-tuned model without training: the strategy looks at some training examples, then the model is "
    "compacted, evaluated and reported as at the end of `fit`. Minutes in place of hours, and less accurate where much "
    "is pruned. Options of the trainer that say how to train make no difference."
)
OWN_PLUGINS = PLUGINS | {"strategy": PluginArgument(base=PruningStrategy, group=STRATEGIES, default="post-training")}


class PruneCLI(PruningCLI):
    """`fit` to Lightning, of whose options it has those that say something where nothing is trained."""

    def __init__(self, args: list[str]) -> None:
        """Parse, build and run.

        Args:
            args: What follows the verb.
        """
        super().__init__(["fit", *args])

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """One, without the arguments of `Trainer.fit`."""
        return {"fit": LightningCLI.subcommands()["fit"] | {"ckpt_path", "weights_only"}}

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """The parser under this verb's name."""
        super().setup_parser(*args, **kwargs)
        parser = self._subcommand_parsers["fit"]
        parser.prog = "bplightning prune"
        parser.usage = "%(prog)s [options]"
        parser.description = DESCRIPTION

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Task, strategy, calibration, baseline and trainer; nothing of training."""
        assert isinstance(parser, PluginParser)
        for key, plugin in OWN_PLUGINS.items():
            parser.add_plugin_arguments(key, plugin)
        parser.add_argument(
            "--calibration_examples",
            type=int | None,
            default=None,
            help="Training examples that the strategy looks at, chosen at random by the seed, 1 or more; all there "
            f"are, if those are fewer. By default as many as the strategy asks for, else {EXAMPLES:,}.",
        )
        parser.add_argument(
            "--baseline",
            type=str,
            default=MODEL,
            metavar="FOLDER|model|none",
            help="The dense model that the report compares with: `model`, the one that is pruned, which the run then "
            "keeps in its baseline/, the folder of a saved one, or `none`.",
        )
        parser.add_argument(
            "--quantize",
            type=Literal["int8"] | None,
            default=None,
            help="Whether to evaluate and time the compact model in 8 bits too (ONNX Runtime). By default not.",
        )
        parser.add_class_arguments(Alignment, "alignment", instantiate=True)
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        own = {"devices": 1, "enable_model_summary": False}  # one process: each would do the same
        parser.set_defaults({f"trainer.{key}": value for key, value in own.items()})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse `args`; there is no recipe to begin with, for a model that is not fine-tuned is not to be pruned so."""
        self.config = parser.parse_args(args)
        task = self.config.fit.task
        recipe = getattr(load(TASKS, task.class_path), "embedded_recipe", None)
        if recipe is not None and task.get("init_args", {}).get("model", "") is None:
            raise UserError(
                "--task.model is not given, and the model that the task would take is not fine-tuned: what it can do "
                "without, nothing says. Give the folder of a fine-tuned one as --task.model."
            )

    def instantiate_classes(self) -> None:
        """Build task, strategy and trainer, and the module of both."""
        super().instantiate_classes()
        self.model = PruningModule(self.datamodule, self._get(self.config_init, "strategy"))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Lightning's trainer, in a folder like `fit`'s."""
        settings = self._get(self.config_init, "trainer")
        if settings.logger in (None, True):
            kwargs["logger"] = GrowingCSVLogger(self._family.parent, name=self._family.name)
        return self.build_trainer(**kwargs, callbacks=self._callbacks(settings), enable_checkpointing=False)

    def fit(self, model: PruningModule, datamodule: Task, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Called in place of `Trainer.fit`: the whole path, to the report."""
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        if (folder / "config.yaml").exists():
            raise UserError(
                f"{str(folder)!r} holds another run's config.yaml: choose another --trainer.default_root_dir."
            )
        self.report = prune(
            self.trainer,
            model,
            datamodule,
            baseline=self._get(self.config, "baseline"),
            calibration_examples=self._get(self.config, "calibration_examples"),
            alignment=self._get(self.config_init, "alignment"),
            quantize=self._get(self.config, "quantize"),
            begin=lambda: SavesConfigOf(self.trainer).setup(self.trainer, model, "fit"),
        )
