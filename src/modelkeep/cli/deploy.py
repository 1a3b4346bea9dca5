"""``deploy``: serve a version that was registered by a client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modelkeep.cli.common import example, file_option, json_option, opened, split_ref
from modelkeep.cli.output import print_json, say, text
from modelkeep.core.errors import Invalid

_MB = 1 << 20


@click.command(
    epilog=example(
        "modelkeep deploy churn                      # the newest version",
        "modelkeep deploy churn@champion --endpoint churn-eu",
        "modelkeep deploy churn@3 --trust 5f2c...    # its pickled model may run",
        "modelkeep deploy churn@3 --memory 512 --not-repeatable",
        "modelkeep deploy churn --set deploy.batch.budget=200ms --set deploy.replicas.max=4",
        "modelkeep deploy churn --set monitor.log.sample=1 --set 'monitor.log.mask=[name]'   # capture",
        "modelkeep deploy score --function score.py --sample rows.csv --with factors.json",
    )
)
@click.argument("ref", metavar="MODEL[@VERSION]")
@click.option("--endpoint", default="", help="The stable address.  [default: the model's name]")
@click.option("--trust", multiple=True, metavar="DIGEST|NAME", help="What the model may run; may be repeated.")
@click.option("--memory", type=click.IntRange(min=64), metavar="MB", help="Most memory of its process.")
@click.option(
    "--not-repeatable", is_flag=True, help="Never predict a request again, whatever became of its batch."
)
@click.option("--all-versions", is_flag=True, help="Let every version be asked for by number or alias.")
@click.option("--ignore-unknown", is_flag=True, help="Leave out inputs that the model does not know.")
@click.option(
    "--set",
    "said",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Of a declaration's deploy or monitor.log; may be repeated.",
)
@click.option("--function", type=click.Path(path_type=Path), help="Register and serve this Python file instead.")
@click.option("--sample", type=click.Path(path_type=Path), help="Rows of the function's inputs.")
@click.option(
    "--with", "beside", multiple=True, type=click.Path(path_type=Path), help="A file that the function reads."
)
@click.option("--because", default="", help="Why, for the history.")
@file_option
@json_option
def deploy(
    *,
    ref: str,
    endpoint: str,
    trust: tuple[str, ...],
    memory: int | None,
    not_repeatable: bool,
    all_versions: bool,
    ignore_unknown: bool,
    said: tuple[str, ...],
    function: Path | None,
    sample: Path | None,
    beside: tuple[Path, ...],
    because: str,
    file: Path,
    as_json: bool,
) -> None:
    """Serve a version that a client registered, such as one logged with MLflow.

    It is run without running code it brings where that is possible: ONNX, skops, XGBoost's and LightGBM's own
    files, TorchScript and torch.export. Pickled models and Python code run only when their digest is trusted.

    With --function a Python file that defines predict(columns) becomes the next version of the model.
    """
    from modelkeep.cli.tables import read_table
    from modelkeep.lifecycle import deploy_foreign, deploy_settings

    model, version = split_ref(ref)
    terms: dict[str, Any] = {"deploy.repeatable": not not_repeatable}
    if all_versions:
        terms["deploy.versions"] = "all"
    if memory is not None:
        terms["deploy.memory"] = memory * _MB
    if ignore_unknown:
        terms["deploy.unknown_fields"] = "ignore"
    settings = deploy_settings.settings(said, terms)
    if (function is None) != (sample is None):
        raise Invalid("--function needs --sample, rows of its inputs, and the other way round")
    with opened(file) as keep:
        if function is not None and sample is not None:
            done = deploy_foreign.deploy_function(
                keep,
                model,
                function,
                read_table(sample),
                beside=beside,
                endpoint=endpoint,
                settings=settings,
                because=because,
            )
        else:
            done = deploy_foreign.deploy(
                keep, model, version or "", endpoint=endpoint, trust=trust, settings=settings, because=because
            )
    if as_json:
        print_json(done)
        return
    say(f"[bold]{text(done.version.name)}[/] answers at [bold]{text(done.endpoint)}[/]")
    say(f"  runtime {done.runtime}: {text(done.note)}")
    say(f"  digest  {done.content}")
