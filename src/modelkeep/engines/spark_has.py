"""What a Spark cluster has: asked of its master, which knows it before any executor, or of the executors."""

from __future__ import annotations

from typing import Any

from modelkeep.engines.room import Room


def local(context: Any) -> bool:
    """Whether Spark runs on this machine alone."""
    return bool(context._jsc.sc().isLocal())


def executors(context: Any) -> set[str]:
    """By Spark's names, which are not given twice."""
    scala = context._jsc.sc()
    return {"driver"} if scala.isLocal() else set(scala.getExecutorIds().mkString(" ").split())


def cores(context: Any) -> list[int]:
    """The cores of each executor; empty when there are none. Spark's own sum may be set by the user."""
    if not executors(context):
        return []
    found = [int(one.totalCores()) for one in _summaries(context)]
    return found or [int(context.defaultParallelism)]  # the newest are not on the list yet


def memory(context: Any) -> int:
    """Bytes that each executor is given."""
    if local(context):
        return int(context._jvm.java.lang.Runtime.getRuntime().maxMemory())
    return int(context._jsc.sc().executorMemory()) << 20


def rooms(context: Any) -> list[Room]:
    """What each executor has that is there; of a Spark on this machine, what it has itself."""
    if local(context):
        gpus = context.resources.get("gpu")
        return [Room(sum(cores(context)), memory(context), len(gpus.addresses) if gpus else 0)]
    return [
        Room(one.totalCores(), memory(context), len(_addresses(one.resources()))) for one in _summaries(context)
    ]


def workers(context: Any) -> list[Room]:
    """What the executor could have that each worker of a standalone master begins; empty when it does not say."""
    master = str(context.master)
    if not master.startswith("spark://"):
        return []
    try:
        return [
            Room(one.cores(), memory(context), len(_addresses(one.resources())))
            for one in _state(context, master).workers()
            if one.state().toString() == "ALIVE"
        ]
    except Exception:  # another version of Spark; several masters of which one is away: executors will show it
        return []


def _state(context: Any, master: str) -> Any:
    """The answer to what Spark's own pages ask the master."""
    java = context._jvm
    # its getter cannot be called: the reflection of Py4J wants the types of all methods, one of which is not there
    field = java.java.lang.Class.forName("org.apache.spark.SparkEnv").getDeclaredField("rpcEnv")
    field.setAccessible(True)
    host, _, port = master.partition(",")[0].removeprefix("spark://").rpartition(":")
    address = java.org.apache.spark.rpc.RpcAddress(host, int(port))
    there = field.get(context._jsc.sc().env()).setupEndpointRef(address, "Master")
    asked = getattr(getattr(java.org.apache.spark.deploy, "DeployMessages$RequestMasterState$"), "MODULE$")
    return there.askSync(asked, getattr(getattr(java.scala.reflect, "ClassTag$"), "MODULE$").Any())


def _summaries(context: Any) -> list[Any]:
    told = context._jsc.sc().statusStore().executorList(True)
    found = [told.apply(at) for at in range(told.size())]
    return [one for one in found if local(context) or one.id() != "driver"]


def _addresses(resources: Any) -> list[str]:
    """Of GPUs, in Scala's map of a worker's or an executor's resources."""
    found = resources.get("gpu")
    return list(found.get().addresses()) if found.isDefined() else []
