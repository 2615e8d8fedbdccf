"""Supervised learning first: how SKETCH learns to speak, see and draw. `triptych lessons sketch` runs this.

Stages, each resumable from its own folder: the autoencoder, the eyes (the vision tower), the connector between eyes and
words, the model that joins them, the decoder once more, the model again on pictures of its own, the drawing experts
alone, and at last the decoder, on what is white. The result is an ordinary checkpoint folder, with averaged weights in
bfloat16.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from triptych.data.lexicon import build_tokenizer
from triptych.data.sft_samples import DataMix, SFTSample
from triptych.errors import ConfigError, ModelError
from triptych.model import weights
from triptych.model.bagel import Bagel
from triptych.model.config import SKETCH, BagelConfig
from triptych.model.transformer import learns
from triptych.rewards.sticker_judge import WorldJudge
from triptych.sft import checkpoint
from triptych.sft.joint import BatchStream, JointConfig, PreviousTokenLoss, sft_batch, shared_cores, train_joint
from triptych.sft.optim import blend, initialise, keep_at, optimizers, rate_at, rates, set_rates, step_all
from triptych.sft.ranges import check_ranges
from triptych.sft.self_generated import keep, kept, self_generated_pictures, self_generated_samples
from triptych.sft.vae import AutoencoderStage, DecoderStage, measured, scenes_of_step, train_autoencoder, train_decoder
from triptych.sft.vision import ConnectorStage, VisionStage, train_connector, train_vision

RECALL = "recall."
STAGES = ("autoencoder", "eyes", "connector", "joined", "decoder", "own", "draw", "polish")
MADE = (*STAGES, "own_pictures", "model", "model.partial", "steps.jsonl")  # in the folder of a run, beside lessons.json


# Tokens recall the word before them from the beginning: what is said of a picture then finds what was asked of it.
JOINED = JointConfig(steps=2000, pictures=44, edits=20, words=60, recall=0.5, mix=DataMix(hard=0.2))
# Mostly words about pictures, and some of what is looked at or mended is the model's own work, planned or not: without
# it, right pictures are misread and mended; with too few wrong ones among those that are shown, wrong ones pass. Some
# prompts are hard, or else hardly any of its planned pictures is wrong.
OWN = JointConfig(
    steps=1300,
    pictures=24,
    edits=14,
    words=120,
    answers=0.5,
    rate=1.4e-3,
    matrix_rate=0.013,
    warmup=10,
    cooldown=0.7,
    words_weight=3.0,  # the words that turn on what is seen are few among those that list it
    own=0.4,
    recall=0.5,
    mix=DataMix(fits=0.3, scrambled=0.4, unseen=0.4, describes=0.1, hard=0.3),
)
# The drawing experts alone: what so many words have cost is drawn again, and no word changes. Pictures at once need it
# most, and of those the hard ones: with fewer, white stickers and small ones come out as another class.
DRAW = JointConfig(
    steps=900,
    pictures=52,
    edits=10,
    words=0,
    plans=0.35,
    rate=1.5e-3,
    matrix_rate=0.013,
    warmup=5,
    cooldown=0.6,
    average=0.98,
    experts="gen",
    mix=DataMix(hard=0.8, whites=3),
)
# The decoder once more, on what it has hardly seen: pictures that are mostly white, or of one colour.
POLISH = DecoderStage(steps=1200, few=0.6)


@dataclass(frozen=True)
class SFTConfig:
    """Every knob of the lessons; the command line overrides any field, and an unknown one is an error."""

    seed: int = 0
    start: str = ""  # a checkpoint to go on from, by name or folder, instead of stages 1 to 3
    device: str = "auto"  # "auto" takes CUDA where there is one
    every: int = 100  # steps between checkpoints
    hands: int = 2  # CPU threads that each work on a part of every group
    workers: int = 0  # processes that prepare lessons ahead; 0 prepares them in between
    autoencoder: AutoencoderStage = field(default_factory=AutoencoderStage)
    eyes: VisionStage = field(default_factory=VisionStage)
    connector: ConnectorStage = field(default_factory=ConnectorStage)
    model: JointConfig = JOINED
    decoder: DecoderStage = field(default_factory=DecoderStage)
    own: JointConfig = OWN
    own_pictures: int = 1200  # drawn by the model before that stage, to learn from its own mistakes
    own_guidance: float = 3.0  # of those pictures: more than is used elsewhere makes more mistakes to learn from
    draw: JointConfig = DRAW
    polish: DecoderStage = POLISH

    def check(self) -> None:
        """Raises ConfigError for numbers that cannot be taught by, before anything is loaded or written."""
        check_ranges(self)
        if not self.start and min(self.autoencoder.steps, self.eyes.steps) < 1:
            told = f"--autoencoder.steps {self.autoencoder.steps}, --eyes.steps {self.eyes.steps}"
            raise ConfigError(f"{told}: expected 1 or more of each, or a --start to take both from")
        if self.own.steps and not self.own_pictures:
            raise ConfigError("--own-pictures 0: expected 1 or more to learn from, or --own.steps 0")
        for stage in ("model", "own", "draw"):
            getattr(self, stage).check(stage)


SFT_DEBUG = SFTConfig(
    every=2,
    autoencoder=AutoencoderStage(steps=2, batch=2),
    eyes=VisionStage(steps=2, batch=2),
    connector=ConnectorStage(steps=2, batch=2),
    model=JointConfig(steps=2, pictures=3, edits=2, words=3),
    decoder=DecoderStage(steps=2, batch=2),
    own=JointConfig(steps=2, pictures=3, edits=2, words=3, own=0.5, recall=0.5),
    own_pictures=2,
    draw=JointConfig(steps=2, pictures=3, edits=2, words=0, experts="gen"),
    polish=DecoderStage(steps=2, batch=2, few=0.5),
)
SFT_RECIPES = {"sketch": SFTConfig(), "debug": SFT_DEBUG}


@dataclass(frozen=True)
class SFTStep:
    """One update: its stage, its place in it, the loss and what else was measured."""

    stage: str
    index: int
    total: int
    loss: float
    metrics: dict[str, float]


def run_sft(
    config: SFTConfig, out: Path, resume: bool = False, bagel_config: BagelConfig = SKETCH
) -> Iterator[SFTStep]:
    """Teach all stages, yielding a Step per update; the checkpoint folder is `out/model` at the end.

    Raises ConfigError for settings that cannot work, or if `out` holds another run's lessons, or any without `resume`.
    """
    config.check()
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if config.device == "auto" else config.device)
    school = SFTRun(config, out, device, bagel_config) if config.start else None
    _claim(out, config, resume)  # once nothing is left that could be refused
    if school is None:
        size = config.autoencoder.steps
        for index, loss, metrics in train_autoencoder(
            bagel_config.autoencoder, config.autoencoder, config.seed, device, out / "autoencoder", config.every
        ):
            yield SFTStep("autoencoder", index, size, loss, metrics)
        for index, loss, metrics in train_vision(
            bagel_config.vision, config.eyes, config.seed, device, out / "eyes", config.every
        ):
            yield SFTStep("eyes", index, config.eyes.steps, loss, metrics)
        school = SFTRun(config, out, device, bagel_config)
        yield from school.connect(config.connector)
    yield from school.study("joined", config.model)
    yield from school.sharpen("decoder", config.decoder, config.seed)
    if config.own.steps:
        yield from school.study("own", config.own, school.own_lessons(config.own_pictures))
    if config.draw.steps:
        school.settle()
        yield from school.study("draw", config.draw)
    yield from school.sharpen("polish", config.polish, config.seed + 1)  # other scenes
    school.graduate(out / "model")


def _claim(out: Path, config: SFTConfig, resume: bool) -> None:
    path, mine = Path(out) / "lessons.json", json.loads(json.dumps(asdict(config)))
    if not path.exists():
        checkpoint.check_free(out, MADE, path.name)
        out.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial")
        aside.write_text(json.dumps(mine, indent=1), encoding="utf-8")
        aside.rename(path)
        return
    if not resume:
        raise ConfigError(f"{out} holds lessons already; resume them with --resume, or choose another --out")
    theirs = json.loads(path.read_text(encoding="utf-8"))
    free = {"device", "workers", "every"}  # these do not change what is learnt
    changed = [key for key in mine if key not in free and mine[key] != theirs.get(key)]
    if changed:
        raise ConfigError(
            f"{path} was written with other {', '.join(changed)}; expected the same settings to resume exactly"
        )


class SFTRun:
    """The joined model, its averages and its optimisers: all stages that need more than one part."""

    def __init__(self, config: SFTConfig, out: Path, device: torch.device, bagel_config: BagelConfig):
        self.config, self.out, self.device = config, Path(out), device
        self.bagel = weights.load(config.start, dtype=torch.float32) if config.start else self._joined(bagel_config)
        self.bagel.autoencoder.requires_grad_(False)
        self.bagel.vit_model.requires_grad_(not config.eyes.frozen)
        self.bagel.train().to(device)
        self.recall = PreviousTokenLoss(self.bagel).to(device)
        self.taught = {name: p for name, p in self.bagel.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.taught.items()}
        self.taught |= {f"{RECALL}{name}": p for name, p in self.recall.named_parameters()}

    def _joined(self, bagel_config: BagelConfig) -> Bagel:
        """A new model around the autoencoder and the eyes of the earlier stages."""
        autoencoder, eyes = self._earlier("autoencoder"), self._earlier("eyes")
        decoder = {name[8:]: tensor for name, tensor in autoencoder.items() if name.startswith("average/")}
        sizes = measured(bagel_config.autoencoder, decoder, scenes_of_step(self.config.seed + 2, 0, 64))
        torch.manual_seed(self.config.seed)
        bagel = Bagel(replace(bagel_config, autoencoder=sizes), build_tokenizer())
        bagel.autoencoder.load_state_dict(decoder)
        tower = {name[len("average/tower.") :]: t for name, t in eyes.items() if name.startswith("average/tower.")}
        bagel.vit_model.load_state_dict(tower)
        initialise(bagel)
        return bagel

    def _earlier(self, stage: str) -> dict[str, Tensor]:
        found = checkpoint.latest(self.out / stage)
        if found is None:
            raise ModelError(
                f"{self.out / stage} holds no checkpoint; expected the stage before the model: run its lessons first"
            )
        return found[0]

    def connect(self, lessons: ConnectorStage) -> Iterator[SFTStep]:
        """Teach the connector alone to say in the model's words what the eyes see."""
        folder = self.out / "connector"
        for index, loss, metrics in train_connector(self.bagel, lessons, self.config.seed, folder, self.config.every):
            yield SFTStep("connector", index, lessons.steps, loss, metrics)
        for name, tensor in self.bagel.connector.state_dict().items():
            self.average[f"connector.{name}"] = tensor.detach().clone()

    def study(self, stage: str, lessons: JointConfig, own: Sequence[SFTSample] = ()) -> Iterator[SFTStep]:
        """Teach a stage from its newest checkpoint, else from the weights as they are; yields a Step per update."""
        learning = self._learners(lessons)
        schools = optimizers(learning, lessons.matrix_rate, lessons.rate)
        bases = rates(schools)
        start = self._resume(stage, schools)
        for step, page in enumerate(self._pages(lessons, start, own), start=start):
            set_rates(schools, bases, rate_at(step, lessons.steps, lessons.warmup, lessons.cooldown))
            for optimizer in schools.values():
                optimizer.zero_grad(set_to_none=True)
            with shared_cores(self.config.hands):
                recall = self.recall if lessons.recall else None
                metrics = train_joint(self.bagel, lessons, page, self.device, self.config.hands, recall)
                metrics["norm"] = float(torch.nn.utils.clip_grad_norm_(learning.values(), lessons.clip or math.inf))
                step_all(schools, self.config.hands)
            blend(self.average, self.bagel, keep_at(step, lessons.average))
            if (step + 1) % self.config.every == 0 or step + 1 == lessons.steps:
                self._save(stage, step + 1, schools)
            yield SFTStep(stage, step, lessons.steps, metrics.pop("loss"), metrics)

    def _learners(self, lessons: JointConfig) -> dict[str, Tensor]:
        """What a stage teaches; nothing is computed for the rest."""
        for name, parameter in self.taught.items():
            asked = lessons.recall > 0 or not name.startswith(RECALL)
            parameter.requires_grad_(asked and learns(name, lessons.experts))
        return {name: parameter for name, parameter in self.taught.items() if parameter.requires_grad}

    @torch.no_grad()
    def settle(self) -> None:
        """Go on from the averaged weights: a stage that leaves some alone leaves them as they will be saved."""
        self.bagel.load_state_dict(self.average, strict=False)

    def sharpen(self, stage: str, lessons: DecoderStage, seed: int) -> Iterator[SFTStep]:
        """Teach the decoder alone; what the joined model has learnt of latents stays true."""
        autoencoder, folder = self.bagel.autoencoder, self.out / stage
        for index, loss, metrics in train_decoder(autoencoder, lessons, seed, folder, self.config.every):
            yield SFTStep(stage, index, lessons.steps, loss, metrics)

    def own_lessons(self, count: int) -> list[SFTSample]:
        """Lessons on pictures that the averaged model draws; they are drawn once and written down."""
        folder, seed = self.out / "own_pictures", 2_000_000_000 + self.config.seed * 1_000_003
        found = kept(folder)
        if found is None:
            policy = self.averaged()
            # Its mistakes should be of drawing: plans are as sure as the rest of what it says.
            sampling = replace(policy.config.sampling, text_guidance=self.config.own_guidance, plan_temperature=None)
            found = self_generated_pictures(policy, count, seed, sampling, self.config.own.mix)
            keep(folder, *found)
        return self_generated_samples(*found, WorldJudge(str(self.device)).scenes, seed, self.config.own.mix)

    def _pages(self, lessons: JointConfig, start: int, own: Sequence[SFTSample]):
        steps, seed = range(start, lessons.steps), self.config.seed + (len(own) > 0)
        if not self.config.workers:
            return (sft_batch(lessons, seed, step, own) for step in steps)
        return torch.utils.data.DataLoader(
            BatchStream(lessons, seed, own),
            batch_size=None,
            sampler=list(steps),
            num_workers=self.config.workers,
            prefetch_factor=4,
            multiprocessing_context="fork",
        )

    def _resume(self, stage: str, schools: dict[str, torch.optim.Optimizer]) -> int:
        found = checkpoint.latest(self.out / stage, self.device)
        if found is None:
            return 0
        tensors, record = found
        with torch.no_grad():
            for name, parameter in self.taught.items():
                parameter.copy_(tensors[f"model/{name}"])
            for name, average in self.average.items():
                average.copy_(tensors[f"average/{name}"])
        for name, optimizer in schools.items():
            checkpoint.unpack_optimizer(name, optimizer, tensors)
        return record["step"]

    def _save(self, stage: str, step: int, schools: dict[str, torch.optim.Optimizer]) -> None:
        tensors = {f"model/{name}": p for name, p in self.taught.items()} | {
            f"average/{n}": t for n, t in self.average.items()
        }
        for name, optimizer in schools.items():
            tensors |= checkpoint.pack_optimizer(name, optimizer)
        checkpoint.save(self.out / stage, step, tensors, {})

    def averaged(self) -> Bagel:
        """A copy of the model with the averaged weights."""
        copy = Bagel(self.bagel.config, self.bagel.tokenizer)
        copy.load_state_dict(self.bagel.state_dict() | self.average)
        return copy.to(self.device).eval()

    def graduate(self, folder: Path) -> Path:
        """Write the averaged weights in bfloat16 as a checkpoint folder, in place of what earlier lessons left."""
        with checkpoint.anew(folder) as fresh:
            weights.save(self.averaged(), fresh, dtype=torch.bfloat16)
        return folder
