"""The server keeps what its /openapi.json says, whatever is sent: tried by a generator of requests."""

import os
import subprocess
import sys

import pytest
from serving import Server

pytest.importorskip("schemathesis")

RUN = "import sys; from schemathesis.cli import schemathesis; sys.argv[0] = 'st'; schemathesis()"


@pytest.mark.slow
def test_no_generated_request_gets_what_the_interface_does_not_say(bundle, tmp_path):
    with Server(bundle) as server:
        address = f"http://127.0.0.1:{server.port}/openapi.json"
        options = ["--max-examples", "200", "--seed", "1", "--generation-database", "none", "--no-color"]
        narrowed = ["--exclude-checks", "positive_data_acceptance,negative_data_rejection"]  # schema_checks.py has them
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SCHEMATHESIS_HOOKS": "schema_checks"}
        command = [sys.executable, "-c", RUN, "run", address, *options, *narrowed]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert ended.returncode == 0, ended.stdout
        assert "Tested: 6" in ended.stdout
        assert server.ask("/readyz").status == 200
        assert b"stage1_inflight_images 0.0" in server.ask("/metrics").content
