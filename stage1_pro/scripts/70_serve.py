"""70: decide images over HTTP with a bundle.

    python stage1_pro/scripts/70_serve.py runs/demo/bundle --port 8000
    curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/v1/decide
reads   a bundle, whose golden inputs are decided first
writes  with --log one line of JSON a decision

Needs the extra: pip install 'stage1-pro[serve]'. Decisions are those of 60_predict.py. Every error says `defer`. With a
word in the environment variable STAGE1_TOKEN, /v1 demands it as bearer token. SIGTERM answers what is in flight, then
ends with status 0; a bundle that is not whole does not start, status 2.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from stage1_pro.core import cli, console


@dataclass(frozen=True)
class Args:
    bundle: str = field(metadata={"nargs": None})
    """Bundle folder, as 50_export_bundle.py writes it."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: every network of this machine."""
    port: int = 8000
    """Port to listen on; 0: any free one."""
    device: str = "auto"
    """Device: auto, cpu, cuda, …"""
    wait_ms: float = 2
    """Longest time in ms that an image waits for others to share its forward pass."""
    max_inflight: int | None = None
    """Images taken on at once; more are refused with 503. null: eight forward passes."""
    deadline_s: float = 10
    """Seconds from the first byte to the answer; later ones are 504."""
    max_bytes: float = 10e6
    """Bytes of an image file; longer ones are 413."""
    max_pixels: float = 50e6
    """Pixels of an image; larger ones are 413."""
    log: str | None = None
    """File that decisions are appended to, one line of JSON each, before they are answered."""
    log_max_bytes: float = 100e6
    """Size at which the log is renamed after the time and begun anew."""
    require_signature: str | None = None
    """Public key file: the bundle must be signed by its owner, or the server does not start. null: signatures are not
    looked at."""
    audit_share: float | None = None
    """Share of the groups whose labels are wanted, above 0 to 1: 65_monitor.py reads the log. null: nothing is
    audited. Every image then needs an id."""
    audit: Literal["uniform", "doubtful"] = "uniform"
    """uniform, or doubtful: negative answers that are nearly deferred are audited more often. That notices a broken
    promise sooner where misses are doubtful, and later where they are confident."""
    audit_salt: str | None = None
    """Key file with the secret salt that draws the audited groups; null: the environment variable STAGE1_AUDIT_SALT."""
    monitor: str | None = None
    """Folder or monitor.json of 65_monitor.py, read again where it changes: every row says whether the certificate
    is in force."""


def main(args: Args) -> None:
    import os
    from pathlib import Path

    from stage1_pro.core.bundle.contents import demand_outside, verify_bundle
    from stage1_pro.core.bundle.signature import demand_signed
    from stage1_pro.core.config.extras import demand_extra
    from stage1_pro.core.errors import UserError
    from stage1_pro.core.monitor.deployed import deployed
    from stage1_pro.core.serving.settings import limits, token_of_environment

    demand_extra("serve")
    if args.audit_share is not None and args.log is None:
        raise UserError("--audit_share without --log: what is audited would be lost. Name a file with --log.")
    token = token_of_environment()
    if args.require_signature:
        demand_signed(args.bundle, args.require_signature, "--require_signature")
    contents = verify_bundle(args.bundle)
    demand_outside(contents.path, args.log, "--log")
    watch = deployed(contents, args.audit_share, args.audit_salt, args.monitor, os.environ, args.audit)
    taken_on = limits(
        contents.manifest.get("forward_batch"),
        wait_ms=args.wait_ms,
        max_inflight=args.max_inflight,
        deadline_s=args.deadline_s,
        max_bytes=args.max_bytes,
        max_pixels=args.max_pixels,
    )

    taken_on = replace(taken_on, named=watch.audits)

    from stage1_pro.core.serving.log import DecisionLog, demand_log
    from stage1_pro.core.serving.server import listening, serve
    from stage1_pro.core.serving.service import Service

    log = None
    if args.log is not None:
        demand_log(args.log, args.log_max_bytes)
        log = DecisionLog(Path(args.log), int(args.log_max_bytes))
    bound = listening(args.host, args.port)
    shown = f"[{args.host}]" if ":" in args.host else args.host
    console.say(f"starting {args.bundle} on http://{shown}:{bound.getsockname()[1]}")
    if token is None and args.host not in ("127.0.0.1", "::1", "localhost"):
        console.say("anybody who reaches this port may ask: set STAGE1_TOKEN to demand a bearer token")
    service = Service(contents, taken_on, device=args.device, token=token, log=log, watch=watch)
    serve(service, bound, lambda: console.say("ready"))
    console.say("ended: everything taken on was answered")


if __name__ == "__main__":
    cli.run(main, Args, __doc__)
