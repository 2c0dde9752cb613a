"""From bytes to decisions: decoding in threads, forward passes filled with whatever waits."""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stage1_pro.core.data.image_files import BadImage
from stage1_pro.core.inference.records import Decision
from stage1_pro.core.records.provenance import cores
from stage1_pro.core.serving.health import COMPUTING, Health
from stage1_pro.core.serving.metrics import Metrics
from stage1_pro.core.serving.settings import Limits

if TYPE_CHECKING:  # the port is open before torch is imported
    from stage1_pro.core.inference.golden import Golden
    from stage1_pro.core.inference.predictor import Stage1Predictor

_AWAKE_S = 0.004
"""Seconds in which the event loop looks around between two rests of one pass."""

_REST_S = 0.05
"""Longest rest of the event loop: what comes meanwhile waits so long. Most passes are shorter; a rest that ends within
one slows it down (seen with passes of some 20 ms at four times the capacity: 260 images a second with rests of 20)."""

_SMALL_BYTES = 8192
"""Images below are decoded one after another: in two threads at once they spend their time on handing the interpreter's
lock over (seen with crops of 2 KB: 0.93 ms of CPU an image instead of 0.53, and no image more a second)."""

_TURNS = 2
"""Turns of the event loop that a result takes to whoever waits for it, and becomes an answer."""


class Expired(Exception):
    """Nobody waits for this image any more."""


@dataclass(slots=True, eq=False)
class _Job:
    """One image on its way: its bytes, then what they are decoded to, then what a pass makes of it.

    expires: time.monotonic() after which nobody waits; done: a Decision, or the logits of an image of a group; image:
    a tensor once it is decoded; error: why it could not be.
    """

    content: bytes
    expires: float
    certificate_group: str | None
    done: "asyncio.Future[Any]"
    image: Any = None
    error: Exception | None = None


@dataclass(slots=True, eq=False)
class _Line:
    """Images that wait to be decoded. most: decoders that it may have; decoding: those that it has."""

    most: int
    jobs: deque[_Job] = field(default_factory=deque)
    decoding: int = 0


def _computing_threads() -> int:
    import torch

    return torch.get_num_threads()


def _decoders() -> ThreadPoolExecutor:
    """A thread a core and one for small images; each computes alone: a setting that torch keeps for each thread."""
    import torch

    return ThreadPoolExecutor(cores() + 1, initializer=torch.set_num_threads, initargs=(1,))


class Engine:
    """Decides images as they come, up to forward_batch in one pass.

    A pass starts when it is full, when every image that was taken on is in it, or wait_s after its first one; where
    images are being decoded by then, it waits for them as long as a pass takes. What the others in a pass are changes
    no bit of a decision: see Stage1Predictor. model: the one thread that has computed with the predictor, which is shut
    down with the engine; busy: images taken on and not yet decided; health: is told what fails and what works.

    Decoders take one image after the other and wake the event loop only where it waits for what they have: futures and
    a wake-up for each image cost 0.2 ms of CPU, half of what decoding a small one costs. Small images have a line and a
    decoder of their own, or each would wait for the large ones before it, a second for 50 MP.

    Threads of a pass wait for the slowest of them. Where they fill the cores nothing else happens meanwhile: no image
    is begun to be decoded, which would stop them all (seen on two cores: passes of 18 ms instead of 30), and where more
    images wait than the pass takes the event loop rests. Between two passes it first sends the answers and reads or
    refuses at one go what has come; then the next images are decoded. Both at once take longer, for the sake of the
    interpreter's lock (seen: 0.6 ms of CPU an image beside the model and its decoding instead of 0.3). Small images of
    which a whole pass waits are decoded by the thread that then computes.
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
        self._small, self._large = _Line(1), _Line(cores())
        self._decoded: deque[_Job] = deque()
        self._begun: float | None = None
        self._pass_s, self._pause = 0.0, False  # of decoders, from the begin of a pass until its answers are sent
        self._wanted, self._news = 1, asyncio.Event()  # set where so many images are decoded
        self._loop = asyncio.get_running_loop()
        self._passes = asyncio.create_task(self._run())

    def decide(self, content: bytes, expires: float, certificate_group: str | None = None) -> "asyncio.Future[Any]":
        """Begin to decide the bytes of one image: its Decision, or what `group_decision` takes of a group's image.

        expires: time.monotonic() after which nobody waits; certificate_group: "" where it is not known, None with a
        bundle of one certificate. The future raises BadImage, Expired, or whatever computing raised.
        """
        job = _Job(content, expires, certificate_group, self._loop.create_future())
        line = self._small if len(content) < _SMALL_BYTES else self._large
        line.jobs.append(job)
        self._decode_more(line)
        return job.done

    def group_decision(self, logits: Sequence[np.ndarray]) -> Decision:
        """The decision on one group by those of its images that are looked at, in their order."""
        (decision,) = self.predictor.group_records(np.stack(logits), [len(logits)], {})
        return decision

    @property
    def computes_s(self) -> float:
        """Seconds since the forward pass that is under way began; 0 where none is."""
        return 0.0 if self._begun is None else self._loop.time() - self._begun

    async def check(self, golden: "Golden") -> None:
        """Raise where the golden inputs cannot be computed, or come out otherwise."""
        await self._loop.run_in_executor(self._model, golden.check, self.predictor)

    async def close(self) -> None:
        self._passes.cancel()
        await asyncio.gather(self._passes, return_exceptions=True)
        self._decoders.shutdown()
        self._model.shutdown()

    def _decode_more(self, line: _Line) -> None:
        """Start one more decoder where there is work for it."""
        if line.jobs and line.decoding < line.most and self._may_decode():
            line.decoding += 1
            ended = partial(self._decoder_ended, line)
            self._loop.run_in_executor(self._decoders, self._decode, line).add_done_callback(ended)

    def _decoder_ended(self, line: _Line, _: Any) -> None:
        line.decoding -= 1
        self._news.set()
        self._decode_more(line)  # what came when it had just looked

    def _may_decode(self) -> bool:
        return not self._fills_cores or (not self._pause and len(self._decoded) < self.limits.forward_batch)

    def _decode(self, line: _Line) -> None:
        """Decode one image after the other; in a thread of its own."""
        while self._may_decode() and (job := self._next(line)):
            self._prepare(job)
            if job.error is not None:
                self._loop.call_soon_threadsafe(self._failed, job, job.error)
                continue
            self._decoded.append(job)
            if len(self._decoded) >= self._wanted:
                self._loop.call_soon_threadsafe(self._news.set)

    def _prepare(self, job: _Job) -> None:
        try:
            if time.monotonic() > job.expires:
                raise Expired
            job.image = self.predictor.prepared(job.content, self.contract)
        except (BadImage, Expired) as error:
            # whose frames hold the image's bytes, and the image: all stayed until a collection of garbage
            error.__traceback__ = error.__cause__ = error.__context__ = None
            job.error = error
        except Exception as error:
            job.error = error

    def _next(self, line: _Line) -> _Job | None:
        with suppress(IndexError):  # another decoder has taken it
            return line.jobs.popleft()
        return None

    def _failed(self, job: _Job, error: Exception) -> None:
        if not isinstance(error, BadImage | Expired):  # as where a GPU decodes, and is lost
            self.health.failed(COMPUTING, error)
        if not self._dropped(job):
            job.done.set_exception(error)

    async def _run(self) -> None:
        while True:
            jobs = [job for job in await self._collected() if not self._dropped(job)]
            if jobs:
                await self._decide(jobs)
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            self._pause = False
            if not self._whole_pass_waits():
                for line in (self._small, *[self._large] * self._large.most):
                    self._decode_more(line)

    def _whole_pass_waits(self) -> bool:
        """Whether the next pass can be filled with small images, which its own thread decodes: nobody is woken up for
        them, and nobody hands the interpreter's lock over meanwhile."""
        decodes = self._small.decoding or self._large.decoding or self._large.jobs
        waiting = len(self._decoded) + len(self._small.jobs)
        return self._fills_cores and not decodes and waiting >= self.limits.forward_batch

    async def _collected(self) -> list[_Job]:
        """The images of the next pass."""
        size = self.limits.forward_batch
        if self._whole_pass_waits():
            return [(self._decoded or self._small.jobs).popleft() for _ in range(size)]
        while not self._decoded:
            await self._news_of(1, None)
        begun = self._loop.time()
        while len(self._decoded) < (whole := min(size, self.busy())):
            patience = max(self.limits.wait_s, self._pass_s if self._small.decoding or self._large.decoding else 0)
            if not await self._news_of(whole, begun + patience):
                break
        self._wanted = sys.maxsize
        return [self._decoded.popleft() for _ in range(min(size, len(self._decoded)))]

    async def _news_of(self, wanted: int, until: float | None) -> bool:
        """Wait until so many images are decoded or a decoder has ended; False where `until` is over before."""
        self._wanted = wanted
        self._news.clear()
        if len(self._decoded) >= wanted:  # they came before anybody was told to tell
            return True
        try:
            async with asyncio.timeout_at(until):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    def _dropped(self, job: _Job) -> bool:
        """Whether it is too late for an image, which then is over."""
        expired = time.monotonic() > job.expires
        if expired:
            job.done.set_exception(Expired())
        return expired

    async def _decide(self, jobs: list[_Job]) -> None:
        self._begun = begun = self._loop.time()
        self._pause = True
        under_way = self._model.submit(self._computed, jobs)
        if self._fills_cores and self.busy() >= 2 * self.limits.forward_batch:  # the next pass is here as well
            self._loop.call_soon(self._rest, under_way)
        try:
            decisions = await asyncio.wrap_future(under_way)
        except Exception as error:  # each of them is answered; the next pass may succeed
            self.health.failed(COMPUTING, error)
            for job in jobs:
                job.done.set_exception(job.error or error)
            return
        finally:
            self._begun = None
        self._pass_s = self._loop.time() - begun
        if decisions:
            self.health.worked(COMPUTING)
            self.metrics.forward_images.observe(len(decisions))
        self._tell(jobs, decisions)

    def _tell(self, jobs: list[_Job], decisions: list[Any]) -> None:
        """decisions: on those of the images that could be decoded, in their order."""
        for job in jobs:
            if job.error is not None:
                self._failed(job, job.error)
        for job, decision in zip((job for job in jobs if job.error is None), decisions, strict=True):
            if not self._dropped(job):
                job.done.set_result(decision)

    def _rest(self, under_way: "Future[Any]") -> None:
        """Stop the event loop until a pass ends, and let it look around now and then where that takes long."""
        try:
            under_way.exception(_REST_S)
        except TimeoutError:
            self._loop.call_later(_AWAKE_S, self._rest, under_way)

    def _computed(self, jobs: Sequence[_Job]) -> list[Any]:
        """The decisions on those of the images that can be decoded, in their order."""
        for job in jobs:
            if job.image is None:
                self._prepare(job)
        readable = [job for job in jobs if job.error is None]
        return self._decided(readable) if readable else []

    def _decided(self, jobs: Sequence[_Job]) -> list[Any]:
        outputs = self.predictor.outputs_of([job.image for job in jobs])
        if self.predictor.views is not None:
            return list(outputs.logits)
        if self.predictor.certificate_groups is None:
            return self.predictor.records(outputs)
        return self.predictor.records(outputs, [job.certificate_group or "" for job in jobs])
