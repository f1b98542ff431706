"""Completion, click's own, in the shells that docs/using.md names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# what a user puts into the start file, then what Tab does after `fer te` and `fer distill RUN --loss `
ASKED = {
    "bash": (
        'eval "$(_FER_COMPLETE=bash_source fer)"\n'
        "COMP_WORDS=(fer te); COMP_CWORD=1; _fer_completion fer te fer; echo ${COMPREPLY[@]}\n"
        "COMP_WORDS=(fer distill RUN --loss ''); COMP_CWORD=4; COMPREPLY=(); _fer_completion fer '' --loss\n"
        "echo ${COMPREPLY[@]}"
    ),
    "fish": (
        "_FER_COMPLETE=fish_source fer | source\n"
        "complete -C 'fer te' | cut -f 1\nstring join ' ' (complete -C 'fer distill RUN --loss ' | cut -f 1)"
    ),
    # Tab needs a terminal: that the function is bound, and what it is told
    "zsh": (
        'autoload -Uz compinit; compinit -u -D; eval "$(_FER_COMPLETE=zsh_source fer)"\n'
        "[[ ${_comps[fer]} == _fer_completion ]] || exit 1\n"
        'COMP_WORDS="fer te" COMP_CWORD=1 _FER_COMPLETE=zsh_complete fer | sed -n 2p\n'
        "COMP_WORDS='fer distill RUN --loss ' COMP_CWORD=4 _FER_COMPLETE=zsh_complete fer"
        " | sed -n '2~3p' | tr '\\n' ' '"
    ),
}


@pytest.mark.parametrize("shell", ASKED)
def test_completion(shell, tmp_path):
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    fer = tmp_path / "fer"
    fer.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from efficientface.cli import main; main()" "$@"\n')
    fer.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    script = Path(tmp_path / "script")
    script.write_text(ASKED[shell])
    done = subprocess.run([program, script], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert sorted(done.stdout.split()) == ["kl", "ldl", "sll", "teach"], done.stderr  # fish sorts
