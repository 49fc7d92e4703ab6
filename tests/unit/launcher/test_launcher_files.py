"""How many files the farm's processes may have open."""

import subprocess
import sys


def test_the_launcher_lets_its_processes_open_more_files_than_a_session_begins_with() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import resource, subprocess\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))\n"
            "from jupyterhub_agentfarm.launcher.up import open_many_files\n"
            "open_many_files()\n"
            "subprocess.run(['sh', '-c', 'ulimit -n'], check=True)\n",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "512"
