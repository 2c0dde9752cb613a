"""From bytes to decisions: decoding in threads, forward passes filled with whatever waits."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from stage1_pro.core.data.image_files import BadImage
from stage1_pro.core.inference.records import Decision
from stage1_pro.core.records.provenance import cores
from stage1_pro.core.serving.health import COMPUTING, Health
from stage1_pro.core.serving.metrics import Metrics
from stage1_pro.core.serving.settings import Limits

if TYPE_CHECKING:  # the port is open before torch is imported
    from torch import Tensor

    from stage1_pro.core.inference.golden import Golden
    from stage1_pro.core.inference.predictor import Stage1Predictor

_AWAKE_S = 0.004
"""Seconds in which the event loop sends the answers of one pass while the next one has begun."""

_REST_S = 0.02
"""Longest rest of the event loop: what comes meanwhile waits so long."""

_SMALL_BYTES = 8192
"""Images below are decoded one after another: in two threads at once they spend their time on handing the interpreter's
lock over (seen with crops of 2 KB: 0.93 ms of CPU an image instead of 0.53, and no image more a second)."""


class Expired(Exception):
    """Nobody waits for this image any more."""


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    image: "Tensor"
    expires: float
    certificate_group: str | None
    done: "asyncio.Future[Any]"


def _computing_threads() -> int:
    import torch

    return torch.get_num_threads()


def _decoders() -> ThreadPoolExecutor:
    """A thread a core, each of which computes alone: a setting that torch keeps for each thread."""
    import torch

    return ThreadPoolExecutor(cores(), initializer=torch.set_num_threads, initargs=(1,))


class Engine:
    """Decides images as they come, up to forward_batch in one pass.

    A pass starts when it is full, when every image that was taken on is in it, or wait_s after its first one; where
    images are being decoded by then, it waits for them as long as a pass takes. What the others in a pass are changes
    no bit of a decision: see Stage1Predictor. model: the one thread that has computed with the predictor, which is shut
    down with the engine; busy: images taken on and not yet decided; health: is told what fails and what works.

    Threads of a pass wait for the slowest of them. Where they fill the cores no image is begun to be decoded meanwhile:
    it would stop them all (seen on two cores: passes of 18 ms instead of 30). For the same reason the event loop rests
    where more images wait than the next pass takes, and then reads and refuses at one go what has come.
    """

    def __init__(
        self,
        predictor: "Stage1Predictor",
        model: ThreadPoolExecutor,
        limits: Limits,
        busy: Callable[[], int],
        health: Health,
        metrics: Metrics,
    ):
        own = predictor.model.spec.preprocessing.images
        self.predictor, self.limits, self.busy, self.health, self.metrics = predictor, limits, busy, health, metrics
        self.contract = replace(own, max_pixels=min(own.max_pixels, limits.max_pixels))
        self._fills_cores = predictor.device.type == "cpu" and _computing_threads() >= cores()
        self._model, self._decoders = model, _decoders()
        self._may_decode, self._decoding, self._pass_s = Event(), 0, 0.0
        self._begun: float | None = None
        self._may_decode.set()
        self._alone = Lock()
        self._waiting: asyncio.Queue[_Prepared | None] = asyncio.Queue()  # None: one less is being decoded
        self._loop = asyncio.get_running_loop()
        self._passes = asyncio.create_task(self._run())

    async def decide(self, content: bytes, expires: float, certificate_group: str | None = None) -> Decision:
        """Decide the bytes of one image. expires: time.monotonic() after which nobody waits.

        certificate_group: "" where it is not known; None with a bundle of one certificate. Raises BadImage, Expired.
        """
        return await self._passed(content, expires, certificate_group)

    async def decide_group(self, contents: Sequence[bytes], expires: float) -> Decision:
        """Decide the bytes of the images of one group that are looked at, in their order. Raises as `decide` does."""
        outcomes = await asyncio.gather(*(self._passed(one, expires) for one in contents), return_exceptions=True)
        logits: list[np.ndarray] = []
        for outcome in outcomes:  # every image has been let go of before the first reason is told
            if isinstance(outcome, BaseException):
                raise outcome
            logits.append(outcome)
        (decision,) = self.predictor.group_records(np.stack(logits), [len(logits)], {})
        return decision

    async def _passed(self, content: bytes, expires: float, certificate_group: str | None = None) -> Any:
        """What a pass makes of one image: its Decision, or its logits where a group decides."""
        job, done, self._decoding = None, self._loop.create_future(), self._decoding + 1
        try:
            image = await self._loop.run_in_executor(self._decoders, self._prepare, content, expires)
            job = _Prepared(image, expires, certificate_group, done)
        except Exception as error:
            if not isinstance(error, BadImage | Expired):  # as where a GPU decodes, and is lost
                self.health.failed(COMPUTING, error)
            raise
        finally:
            self._decoding -= 1
            self._waiting.put_nowait(job)
        return await done

    @property
    def computes_s(self) -> float:
        """Seconds since the forward pass that is under way began; 0 where none is."""
        return 0.0 if self._begun is None else self._loop.time() - self._begun

    async def check(self, golden: "Golden") -> None:
        """Raise where the golden inputs cannot be computed, or come out otherwise."""
        await self._loop.run_in_executor(self._model, golden.check, self.predictor)

    async def close(self) -> None:
        self._passes.cancel()
        self._may_decode.set()
        await asyncio.gather(self._passes, return_exceptions=True)
        self._decoders.shutdown()
        self._model.shutdown()

    def _prepare(self, content: bytes, expires: float) -> "Tensor":
        self._may_decode.wait()
        if time.monotonic() > expires:
            raise Expired
        with self._alone if len(content) < _SMALL_BYTES else nullcontext():
            return self.predictor.prepared(content, self.contract)

    async def _run(self) -> None:
        while True:
            jobs = [job for job in await self._collected() if not self._dropped(job)]
            if jobs:
                await self._decide(jobs)

    async def _collected(self) -> list[_Prepared]:
        jobs = [await self._next()]
        begun = self._loop.time()
        while len(jobs) < min(self.limits.forward_batch, self.busy()):
            patience = max(self.limits.wait_s, self._pass_s if self._decoding else 0)
            try:
                found = self._waiting.get_nowait()  # under load they are here, and a timer an image costs
            except asyncio.QueueEmpty:
                try:
                    async with asyncio.timeout_at(begun + patience):
                        found = await self._waiting.get()
                except TimeoutError:
                    break
            jobs += [] if found is None else [found]
        return jobs

    async def _next(self) -> _Prepared:
        while (job := await self._waiting.get()) is None:
            pass
        return job

    def _dropped(self, job: _Prepared) -> bool:
        expired = time.monotonic() > job.expires
        if expired:
            job.done.set_exception(Expired())
        return expired

    async def _decide(self, jobs: list[_Prepared]) -> None:
        self.metrics.forward_images.observe(len(jobs))
        self._begun = begun = self._loop.time()
        if self._fills_cores and self.busy() >= 2 * self.limits.forward_batch:  # the next pass is here as well
            self._loop.call_later(_AWAKE_S, self._rest)
        try:
            decisions = await self._loop.run_in_executor(self._model, self._computed, jobs)
        except Exception as error:  # each of them is answered; the next pass may succeed
            self.health.failed(COMPUTING, error)
            for job in jobs:
                job.done.set_exception(error)
            return
        finally:
            self._begun = None
        self.health.worked(COMPUTING)
        self._pass_s = self._loop.time() - begun
        for job, decision in zip(jobs, decisions, strict=True):
            job.done.set_result(decision)

    def _rest(self) -> None:
        """Stop the event loop until the pass ends, and let it look around now and then where that takes long."""
        if not self._may_decode.wait(_REST_S):
            self._loop.call_later(_AWAKE_S, self._rest)

    def _computed(self, jobs: Sequence[_Prepared]) -> list[Any]:
        if self._fills_cores:
            self._may_decode.clear()
        try:
            return self._decided(jobs)
        finally:
            self._may_decode.set()

    def _decided(self, jobs: Sequence[_Prepared]) -> list[Any]:
        outputs = self.predictor.outputs_of([job.image for job in jobs])
        if self.predictor.views is not None:
            return list(outputs.logits)
        if self.predictor.certificate_groups is None:
            return self.predictor.records(outputs)
        return self.predictor.records(outputs, [job.certificate_group or "" for job in jobs])
