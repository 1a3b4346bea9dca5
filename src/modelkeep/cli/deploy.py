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
        "modelkeep deploy churn@4 --canary 10%       # beside version 3; modelkeep deploy churn@4 lets it win",
        "modelkeep deploy churn@3 --memory 512 --not-repeatable",
        "modelkeep deploy churn --set deploy.batch.budget=200ms --set deploy.replicas.max=4",
        "modelkeep deploy churn --set monitor.log.sample=1 --set 'monitor.log.mask=[name]'   # capture",
        "modelkeep deploy score --function score.py --sample rows.csv --with factors.json",
    )
)
@click.argument("ref", metavar="MODEL[@VERSION]")
@click.option(
    "--canary", default="", metavar="SHARE", help="Beside the version that answers, for 10% of requests."
)
@click.option("--shadow", is_flag=True, help="Beside the version that answers: it sees all and answers nobody.")
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
    canary: str,
    shadow: bool,
    said: tuple[str, ...],
    function: Path | None,
    sample: Path | None,
    file: Path,
    as_json: bool,
    **how: Any,
) -> None:
    """Serve a version that a client registered, such as one logged with MLflow.

    It is run without running code it brings where that is possible: ONNX, skops, XGBoost's and LightGBM's own
    files, TorchScript and torch.export. Pickled models and Python code run only when their digest is trusted.

    With --canary or --shadow the version stands beside the one that answers, whose endpoint stays as it is.
    Deployed without, it takes all traffic; `modelkeep rollback MODEL` takes it away again.

    With --function a Python file that defines predict(columns) becomes the next version of the model.
    """
    from modelkeep.cli.tables import read_table
    from modelkeep.lifecycle import deploy_foreign, deploy_settings

    model, version = split_ref(ref)
    step, terms = deploy_settings.step(canary, shadow=shadow), _terms(how)
    if step is not None and (said or terms or function):
        raise Invalid(
            "with --canary and --shadow the endpoint stays as it is: nothing can be set, no function registered",
            hint="set it with the version that answers, or when the other one takes over",
        )
    settings = deploy_settings.settings(said, {"deploy.repeatable": True, **terms})
    if (function is None) != (sample is None):
        raise Invalid("--function needs --sample, rows of its inputs, and the other way round")
    told: dict[str, Any] = {"endpoint": how["endpoint"], "settings": settings, "because": how["because"]}
    with opened(file) as keep:
        if function is not None and sample is not None:
            rows = read_table(sample)
            done = deploy_foreign.deploy_function(keep, model, function, rows, beside=how["beside"], **told)
        else:
            done = deploy_foreign.deploy(keep, model, version or "", trust=how["trust"], step=step, **told)
    if as_json:
        print_json(done)
        return
    stands = f"stands beside the champion ({text(step.text)})" if step else "answers"
    say(f"[bold]{text(done.version.name)}[/] {stands} at [bold]{text(done.endpoint)}[/]")
    say(f"  runtime {done.runtime}: {text(done.note)}")
    say(f"  digest  {done.content}")


def _terms(how: dict[str, Any]) -> dict[str, Any]:
    """What options of their own say of a declaration's fields."""
    terms: dict[str, Any] = {}
    if how["not_repeatable"]:
        terms["deploy.repeatable"] = False
    if how["all_versions"]:
        terms["deploy.versions"] = "all"
    if how["memory"] is not None:
        terms["deploy.memory"] = how["memory"] * _MB
    if how["ignore_unknown"]:
        terms["deploy.unknown_fields"] = "ignore"
    return terms
