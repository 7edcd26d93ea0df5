"""A server on loopback that speaks as much of W&B's protocol as kgon uses, without W&B's code.

The real client talks to it: GraphQL by operation name, the file stream of history rows, uploads of
files and artifacts, views (workspaces, reports), sweeps. What it does not know it refuses, and
remembers in `unknown`, which a test asserts to be empty; what a client may not do (a gap in the
history, a changed row) it remembers in `wrongs`. `faults` are answers to give instead of the right
one: a status, "drop" (close the connection), or "hang" (say nothing).
"""

import base64
import contextlib
import json
import math
import random
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

API_KEY = "local-" + "k0" * 20
"""Of the form the client wants; for this server only."""

ENTITY = "tester"
_USER = {"id": "user-1", "name": "Tester", "username": ENTITY, "email": "tester@localhost"}


_SHOWN = (
    "groupName", "displayName", "jobType", "tags", "notes", "sweep", "program",
    "commit",
)  # fmt: skip


def _edges(nodes: list[Any]) -> dict[str, Any]:
    edges = [{"cursor": str(i), "node": node} for i, node in enumerate(nodes)]
    page = {"hasNextPage": False, "endCursor": None}
    return {"edges": edges, "pageInfo": page, "totalCount": len(nodes)}


def draw(parameter: dict[str, Any], seed: str) -> float:
    """A value from a sweep's parameter."""
    low, high, dice = parameter["min"], parameter["max"], random.Random(seed)
    match parameter["distribution"]:
        case "log_uniform_values":
            return math.exp(dice.uniform(math.log(low), math.log(high)))
        case "int_uniform":
            return dice.randint(low, high)
    raise ValueError(f"no such distribution: {parameter}")


class Run:
    """What the server has of one run."""

    def __init__(self, project: str, name: str):
        self.project, self.name = project, name
        self.id = base64.b64encode(f"Run:v1:{name}:{project}:{ENTITY}".encode()).decode()
        self.fields: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.state, self.exit_code = "running", None
        self.streams: dict[str, list[str]] = {}
        self.files: dict[str, bytes] = {}
        self.used: list[str] = []  # ids of artifacts

    def rows(self) -> list[dict[str, Any]]:
        """The history, decoded."""
        return [json.loads(line) for line in self.streams.get("wandb-history.jsonl", [])]

    def metrics(self) -> list[dict[str, Any]]:
        """The history without what a clock says."""
        clocks = ("_runtime", "_timestamp", "_wandb")
        return [{k: v for k, v in row.items() if k not in clocks} for row in self.rows()]

    def node(self, url: str) -> dict[str, Any]:
        history = self.streams.get("wandb-history.jsonl", [])
        events = self.streams.get("wandb-events.jsonl", [])
        keys = sorted({key for row in self.rows() for key in row})
        return {
            "__typename": "Run",
            "id": self.id,
            "name": self.name,
            "displayName": self.fields.get("displayName") or self.name,
            "description": "",
            "notes": self.fields.get("notes") or "",
            "config": json.dumps(self.config),
            "summaryMetrics": json.dumps(self.summary),
            "systemMetrics": "{}",
            "wandbConfig": json.dumps({"t": (self.config.get("_wandb") or {}).get("t", {})}),
            "group": self.fields.get("groupName"),
            "jobType": self.fields.get("jobType"),
            "tags": self.fields.get("tags") or [],
            "sweepName": self.fields.get("sweep"),
            "state": self.state,
            "commit": None,
            "readOnly": False,
            "createdAt": "2026-01-01T00:00:00Z",
            "heartbeatAt": "2026-01-01T00:00:00Z",
            "historyKeys": {
                "lastStep": max((row["_step"] for row in self.rows()), default=-1),
                "keys": {key: {} for key in keys},
            },
            "user": _USER,
            "project": {
                "id": f"project-{self.project}",
                "name": self.project,
                "entity": {"id": "entity-1", "name": ENTITY},
            },
            "projectId": "1",
            "historyLineCount": len(history),
            "logLineCount": len(self.streams.get("output.log", [])),
            "eventsLineCount": len(events),
            "historyTail": json.dumps(history[-1:]),
            "eventsTail": json.dumps(events[-1:]),
            "history": history,
            "sampledHistory": [],
            "files": _edges(
                [
                    {
                        "id": f"file-{name}",
                        "name": name,
                        "sizeBytes": len(content),
                        "directUrl": f"{url}/storage/runs/{self.project}/{self.name}/{name}",
                    }
                    for name, content in self.files.items()
                ]
            ),
        }


class Server:
    """The server and all that it was told; a context manager.

    Attributes:
        url: to give to the client as WANDB_BASE_URL.
        runs: by (project, run id).
        deleted: (project, run id) of runs that were deleted, whose ids are refused.
        artifacts, views, sweeps: by id.
        faults: (path pattern, answer) in order; a matching request takes the first and is lost.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.runs: dict[tuple[str, str], Run] = {}
        self.deleted: set[tuple[str, str]] = set()
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.manifests: dict[str, dict[str, Any]] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[tuple[str, int | str]] = []
        self.operations: list[str] = []
        self.unknown: list[str] = []
        self.wrongs: list[str] = []
        self.injected = 0
        self.always: int | str | None = None
        self._released = threading.Event()
        self._count = 0

        class Handler(_Handler):
            server_state = self

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "Server":
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._http.shutdown()
        self._http.server_close()

    def environment(self, home: Any) -> dict[str, str]:
        """Variables for a client process that knows this server and no other."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": API_KEY,
            "HOME": str(home),
            "WANDB_CONFIG_DIR": str(home),
            "WANDB_CACHE_DIR": f"{home}/cache",
        }

    def release(self) -> None:
        """End all faults; what hangs is dropped."""
        self.always, self.faults = None, []
        self._released.set()
        self._released = threading.Event()

    def new_id(self, kind: str) -> str:
        self._count += 1
        return base64.b64encode(f"{kind}:{self._count}".encode()).decode()

    def run(self, project: str, name: str) -> Run:
        return self.runs.setdefault((project, name), Run(project, name))

    def assert_clean(self) -> None:
        """No operation that is not known here, and nothing that a client may not do."""
        assert not self.unknown, f"unknown operations: {sorted(set(self.unknown))}"
        assert not self.wrongs, self.wrongs

    def fault(self, path: str, body: bytes) -> int | str | None:
        """The answer to give instead of the right one, if any."""
        with self.lock:
            if self.always is not None:
                self.injected += 1
                return self.always
            for i, (pattern, answer) in enumerate(self.faults):
                if re.search(pattern, path) or re.search(pattern.encode(), body[:2000]):
                    del self.faults[i]
                    self.injected += 1
                    return answer
        return None

    # -------------------------------------------------------------------------------- GraphQL

    def graphql(self, name: str, v: dict[str, Any], query: str) -> Any:
        handler: Callable[..., Any] | None = getattr(self, f"op_{name}", None)
        self.operations.append(name)
        if handler is None:
            self.unknown.append(name)
            return {"errors": [{"message": f"unknown operation {name}: {query[:3000]}"}]}
        with self.lock:
            answer = handler(v)
        return answer if "errors" in answer else {"data": answer}

    def op_ServerFeaturesQuery(self, v: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def op_Viewer(self, v: dict[str, Any]) -> Any:
        viewer = {**_USER, "entity": ENTITY, "flags": "{}", "admin": False, "deletedAt": None}
        viewer |= {"apiKeys": _edges([]), "teams": _edges([])}
        return {"viewer": viewer, "serverInfo": self._server_info()}

    op_GetViewer = op_Viewer

    def op_GetDefaultEntity(self, v: dict[str, Any]) -> Any:
        return {"viewer": {"id": _USER["id"], "entity": ENTITY}}

    def op_OrganizationCoreWeaveOrganizationID(self, v: dict[str, Any]) -> Any:
        return {"entity": {"organization": None}}

    def _server_info(self) -> dict[str, Any]:
        latest = {"latestVersionString": "0.70.0", "versionOnThisInstanceString": "0.70.0"}
        return {"cliVersionInfo": {"max_cli_version": "9.9.9"}, "latestLocalVersionInfo": latest}

    def op_RunResumeStatus(self, v: dict[str, Any]) -> Any:
        run = self.runs.get((v["project"], v["name"]))
        entity = {"id": "entity-1", "name": ENTITY}
        bucket = None if run is None else run.node(self.url)
        return {
            "model": {
                "id": f"project-{v['project']}",
                "name": v["project"],
                "entity": entity,
                "bucket": bucket,
            }
        }

    def delete(self, run: Run) -> None:
        del self.runs[run.project, run.name]
        self.deleted.add((run.project, run.name))

    def op_UpsertBucket(self, v: dict[str, Any]) -> Any:
        if (v.get("project"), v.get("name")) in self.deleted:
            why = f"run {v['name']} was previously created and deleted; try a new run name"
            return {"errors": [{"message": why}], "status": 409}
        by_id = [run for run in self.runs.values() if v.get("id") and run.id == v["id"]]
        inserted = not by_id and (v.get("project"), v.get("name")) not in self.runs
        run = by_id[0] if by_id else self.run(v["project"], v["name"])
        run.fields.setdefault("entity", v.get("entity"))
        for key in _SHOWN:
            if v.get(key) is not None:
                run.fields[key] = v[key]
        if v.get("config"):
            run.config = json.loads(v["config"])
        if v.get("summaryMetrics"):
            run.summary |= json.loads(v["summaryMetrics"])
        if v.get("state"):
            run.state = v["state"]
        elif inserted or run.state != "running":
            run.state = "running"
        return {"upsertBucket": {"bucket": run.node(self.url), "inserted": inserted}}

    def op_CreateRunFiles(self, v: dict[str, Any]) -> Any:
        base = f"{self.url}/storage/runs/{v['project']}/{v['run']}"
        files = [{"name": name, "uploadUrl": f"{base}/{name}"} for name in v["files"]]
        run = self.run(v["project"], v["run"])
        return {"createRunFiles": {"runID": run.id, "uploadHeaders": [], "files": files}}

    def op_Run(self, v: dict[str, Any]) -> Any:
        run = self.runs.get((v["project"], v["name"]))
        return {"project": {"run": None if run is None else run.node(self.url)}}

    op_RunHistoryKeys = op_Run

    def op_RunFiles(self, v: dict[str, Any]) -> Any:
        run = self.runs.get((v["project"], v["name"]))
        if run is None:
            return {"project": {"run": None}}
        node = run.node(self.url)
        names = v.get("fileNames") or list(run.files)
        edges = [e for e in node["files"]["edges"] if e["node"]["name"] in names]
        node |= {"fileCount": len(run.files), "files": {**node["files"], "edges": edges}}
        return {"project": {"internalId": "1", "run": node}}

    # -------------------------------------------------------------------------------- artifacts

    def op_ArtifactType(self, v: dict[str, Any]) -> Any:
        return {"project": {"artifact": None}}

    def op_CreateArtifact(self, v: dict[str, Any]) -> Any:
        i = v["input"]
        name = i.get("artifactCollectionName") or i["artifactCollectionNames"][0]
        before = [
            a
            for a in self.artifacts.values()
            if (a["project"], a["name"]) == (i["projectName"], name)
        ]
        for artifact in before:
            if artifact["digest"] == i["digest"] and artifact["state"] == "COMMITTED":
                return {"createArtifact": {"artifact": self._artifact(artifact)}}
        artifact = {
            "id": self.new_id("Artifact"),
            "name": name,
            "project": i["projectName"],
            "type": i["artifactTypeName"],
            "run": i.get("runName"),
            "digest": i["digest"],
            "metadata": i.get("metadata"),
            "description": i.get("description"),
            "aliases": [a["alias"] for a in i.get("aliases") or []],
            "version": len(before),
            "state": "PENDING",
            "manifest": None,
            "clientID": i.get("clientID"),
            "files": {},
        }
        for other in before:
            other["aliases"] = [a for a in other["aliases"] if a not in artifact["aliases"]]
        self.artifacts[artifact["id"]] = artifact
        return {"createArtifact": {"artifact": self._artifact(artifact)}}

    def _artifact(self, a: dict[str, Any]) -> dict[str, Any]:
        committed = [
            b
            for b in self.artifacts.values()
            if (b["project"], b["name"]) == (a["project"], a["name"]) and b["state"] == "COMMITTED"
        ]
        latest = {"id": committed[-1]["id"]} if committed else None
        project = {
            "id": f"project-{a['project']}",
            "internalId": f"project-{a['project']}",
            "name": a["project"],
            "entity": {"id": "entity-1", "name": ENTITY},
        }
        sequence = {
            "__typename": "ArtifactSequence",
            "id": f"sequence-{a['name']}",
            "name": a["name"],
            "project": project,
            "latestArtifact": latest,
        }
        aliases = [*a["aliases"], f"v{a['version']}"]
        return {
            "__typename": "Artifact",
            "id": a["id"],
            "artifactSequence": sequence,
            "sequence": sequence,
            "versionIndex": a["version"],
            "artifactType": {"id": a["type"], "name": a["type"]},
            "description": a["description"],
            "metadata": a["metadata"] or "{}",
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": a["state"],
            "size": 1,
            "digest": a["digest"],
            "commitHash": "",
            "fileCount": len(a["files"]),
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": "2026-01-01T00:00:00Z",
            "aliases": [
                {
                    "__typename": "ArtifactAlias",
                    "id": f"alias-{alias}",
                    "alias": alias,
                    "artifactCollection": sequence,
                    "artifactCollectionName": a["name"],
                }
                for alias in aliases
            ],
            "artifactCollections": _edges([sequence]),
            "artifactMemberships": _edges([]),
            "currentManifest": {
                "id": f"manifest-{a['id']}",
                "file": {"directUrl": f"{self.url}/storage/manifests/{a['id']}"},
            },
        }

    def op_CreateArtifactManifest(self, v: dict[str, Any]) -> Any:
        url = f"{self.url}/storage/manifests/{v['artifactID']}"
        file = {"id": "file", "uploadUrl": url, "uploadHeaders": []}
        manifest = {"id": f"manifest-{v['artifactID']}", "file": file}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def op_UpdateArtifactManifest(self, v: dict[str, Any]) -> Any:
        artifact_id = v["artifactManifestID"].removeprefix("manifest-")
        file = {"id": "file", "uploadHeaders": []}
        file["uploadUrl"] = f"{self.url}/storage/manifests/{artifact_id}"
        manifest = {"id": v["artifactManifestID"], "file": file}
        return {"updateArtifactManifest": {"artifactManifest": manifest}}

    def op_CreateArtifactFiles(self, v: dict[str, Any]) -> Any:
        nodes = []
        for file in v["input"]["artifactFiles"]:
            path = f"artifacts/{file['artifactID']}/{file['name']}"
            self.artifacts[file["artifactID"]]["files"][file["name"]] = path
            nodes.append(
                {
                    "storagePath": f"wandb_artifacts/{path}",
                    "uploadUrl": f"{self.url}/storage/{path}",
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": file["artifactID"]},
                }
            )
        return {"createArtifactFiles": {"files": _edges(nodes)}}

    def op_CommitArtifact(self, v: dict[str, Any]) -> Any:
        artifact = self.artifacts[v["artifactID"]]
        for name, path in artifact["files"].items():
            if path not in self.blobs:
                self.wrongs.append(f"artifact {artifact['name']} committed without {name}")
        artifact["state"] = "COMMITTED"
        return {
            "commitArtifact": {"artifact": {"id": artifact["id"], "digest": artifact["digest"]}}
        }

    def op_UseArtifact(self, v: dict[str, Any]) -> Any:
        run = self.runs[v["projectName"], v["runName"]]
        run.used += [] if v["artifactID"] in run.used else [v["artifactID"]]
        return {"useArtifact": {"artifact": {"id": v["artifactID"]}}}

    def op_RunInputArtifacts(self, v: dict[str, Any]) -> Any:
        used = [self._artifact(self.artifacts[i]) for i in self.runs[v["project"], v["run"]].used]
        return {"project": {"run": {"artifacts": _edges(used)}}}

    def op_RunOutputArtifacts(self, v: dict[str, Any]) -> Any:
        if (v["project"], v["run"]) not in self.runs:
            return {"project": {"run": None}}
        made = [
            self._artifact(a)
            for a in self.artifacts.values()
            if (a["project"], a["run"]) == (v["project"], v["run"])
        ]
        return {"project": {"run": {"artifacts": _edges(made)}}}

    def _known(self, entity: str, project: str, name: str, alias: str) -> dict[str, Any] | None:
        """The committed artifact of this name that has this alias."""
        for artifact in self.artifacts.values():
            aliases = (*artifact["aliases"], f"v{artifact['version']}")
            if (entity, artifact["project"], artifact["name"], artifact["state"]) == (
                ENTITY, project, name, "COMMITTED",
            ) and alias in aliases:  # fmt: skip
                return artifact
        return None

    def op_ArtifactMembershipByName(self, v: dict[str, Any]) -> Any:
        known = self._known(v["entity"], v["project"], *v["name"].split(":"))
        if known is None:
            return {"project": {"artifactCollectionMembership": None}}
        artifact = self._artifact(known)
        membership = {
            "__typename": "ArtifactCollectionMembership",
            "id": f"membership-{known['id']}",
            "versionIndex": known["version"],
            "createdAt": artifact["createdAt"],
            "aliases": artifact["aliases"],
            "artifactCollection": artifact["sequence"],
            "artifact": artifact,
        }
        return {"project": {"artifactCollectionMembership": membership}}

    def op_FetchArtifactManifest(self, v: dict[str, Any]) -> Any:
        return {"artifact": self._artifact(self.artifacts[v["id"]])}

    def op_GetArtifactMembershipFileUrls(self, v: dict[str, Any]) -> Any:
        known = self._known(v["entity"], v["project"], v["collection"], v["alias"])
        assert known is not None
        nodes = [
            {"__typename": "File", "name": name, "directUrl": f"{self.url}/storage/{path}"}
            for name, path in known["files"].items()
        ]
        files = _edges(nodes)
        files["pageInfo"]["__typename"] = "PageInfo"
        collection = {"__typename": "ArtifactSequence", "artifactMembership": {"files": files}}
        return {"project": {"artifactCollection": collection}}

    # ------------------------------------------------------------------- workspaces and reports

    def _upsert_view(self, v: dict[str, Any]) -> Any:
        inserted = not v.get("id")
        view = self.views.setdefault(v.get("id") or self.new_id("View"), {})
        view |= {key: value for key, value in v.items() if value is not None}
        view["id"] = next(i for i, other in self.views.items() if other is view)
        return {"upsertView": {"view": self._view(view), "inserted": inserted}}

    def _view(self, view: dict[str, Any]) -> dict[str, Any]:
        project = {"id": f"project-{view['projectName']}", "name": view["projectName"]}
        times = {"createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"}
        return {**view, **times, "project": {**project, "entityName": view["entityName"]}}

    op_UpsertView2 = op_upsertView = _upsert_view

    def op_View(self, v: dict[str, Any]) -> Any:
        found = [
            self._view(view)
            for view in self.views.values()
            if (view["projectName"], view["name"]) == (v["name"], v["viewName"])
        ]
        return {"project": {"allViews": _edges(found)}}

    def op_ProjectViews(self, v: dict[str, Any]) -> Any:
        kinds = [view for view in self.views.values() if view["type"] == v.get("viewType", "runs")]
        own = [view for view in kinds if view["projectName"] == v["project"]]
        views = [self._view(view) | {"user": _USER, "description": ""} for view in own]
        return {"project": {"allViews": _edges(views)}}

    def op_SpecificReport(self, v: dict[str, Any]) -> Any:
        return {"view": self._view(self.views[v["reportId"]])}

    def op_GetProjects(self, v: dict[str, Any]) -> Any:
        names = sorted({project for project, _ in self.runs})
        page = _edges([self._project(name) for name in names])
        page["pageInfo"]["__typename"] = "PageInfo"
        return {"models": page}

    def _project(self, name: str) -> dict[str, Any]:
        times = {"createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None}
        return {"__typename": "Project", "id": name, "name": name, "entityName": ENTITY, **times}

    # ----------------------------------------------------------------------------------- sweeps

    def op_UpsertSweep(self, v: dict[str, Any]) -> Any:
        config = yaml.safe_load(v["config"])
        name = f"sweep{len(self.sweeps)}"
        # `overrides`: of the points that are drawn, one after another, for a test to set.
        sweep = {"id": self.new_id("Sweep"), "name": name, "project": v["projectName"]}
        self.sweeps[name] = {**sweep, "config": config, "runs": [], "overrides": []}
        project = self._project(v["projectName"]) | {"entity": {"id": "entity-1", "name": ENTITY}}
        answer = {"sweep": {"name": name, "project": project}, "configValidationWarnings": []}
        return {"upsertSweep": answer}

    def op_SweepWithRuns(self, v: dict[str, Any]) -> Any:
        sweep = self.sweeps.get(v["sweep"])
        if sweep is None or sweep["project"] != v["project"]:
            return {"project": {"sweep": None}}
        config = yaml.dump(sweep["config"])
        node = {"id": sweep["id"], "name": sweep["name"], "config": config, "state": "RUNNING"}
        return {"project": {"sweep": {**node, "runs": _edges([])}}}

    def op_CreateAgent(self, v: dict[str, Any]) -> Any:
        return {"createAgent": {"agent": {"id": f"agent-of-{v['sweep']}"}}}

    def op_Heartbeat(self, v: dict[str, Any]) -> Any:
        """Give an agent that has nothing to do its next point; for one agent a sweep."""
        sweep = self.sweeps[v["id"].removeprefix("agent-of-")]
        at_work = json.loads(v["runState"])
        for name in sweep["runs"]:
            run = self.run(sweep["project"], name)
            if name not in at_work and run.state in ("pending", "running"):
                run.state = "crashed"
        commands = [] if at_work else [self._next_point(sweep)]
        return {"agentHeartbeat": {"agent": {"id": v["id"]}, "commands": json.dumps(commands)}}

    def _next_point(self, sweep: dict[str, Any]) -> dict[str, Any]:
        """Make a run, as W&B does before the agent starts it."""
        name = f"{sweep['name']}-run{len(sweep['runs'])}"
        drawn = {k: draw(p, f"{name} {k}") for k, p in sweep["config"]["parameters"].items()}
        point = drawn | (sweep["overrides"].pop(0) if sweep["overrides"] else {})
        sweep["runs"].append(name)
        run = self.run(sweep["project"], name)
        run.state, run.config = "pending", {k: {"value": value} for k, value in point.items()}
        program = sweep["config"]["program"]
        return {"type": "run", "run_id": name, "program": program, "args": run.config}

    # ------------------------------------------------------------------------------ file stream

    def stream(self, project: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Take rows at their offsets, as W&B does: the same rows again change nothing."""
        run = self.runs.get((project, name))
        if run is None:
            self.wrongs.append(f"file stream to {project}/{name}, which was never made")
            return {}
        for file, part in (body.get("files") or {}).items():
            lines, offset, content = (
                run.streams.setdefault(file, []),
                part["offset"],
                part["content"],
            )
            if file == "wandb-summary.json":
                run.summary = json.loads(content[-1])
                continue
            if file == "output.log":
                continue
            if offset > len(lines):
                self.wrongs.append(f"{name}: {file} has {len(lines)} lines, next offset {offset}")
            again = lines[offset : offset + len(content)]
            if again != content[: len(again)]:
                self.wrongs.append(f"{name}: {file} rewritten from line {offset}")
            lines[offset : offset + len(content)] = content
        if body.get("complete"):
            run.exit_code = body.get("exitcode")
            run.state = "finished" if run.exit_code == 0 else "failed"
        return {"exitcode": None, "limits": {}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: Any = b"") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _handle(self) -> None:
        state = self.server_state
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            path = unquote(urlsplit(self.path).path)
            answer = state.fault(path, body)
            if answer == "drop":
                self.close_connection = True
                return
            if answer == "hang":
                state._released.wait()
                self.close_connection = True
                return
            if isinstance(answer, int):
                self._answer(answer, {"error": "injected"})
                return
            self._route(state, path, body)

    do_GET = do_POST = do_PUT = do_HEAD = _handle

    def _route(self, state: Server, path: str, body: bytes) -> None:
        if path == "/healthz" or path.startswith("/sdk/otel/"):  # alive; the client's telemetry
            return self._answer(200)
        if path.startswith("/storage/"):
            return self._storage(state, path.removeprefix("/storage/"), body)
        expected = base64.b64encode(f"api:{API_KEY}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {expected}":
            return self._answer(401, {"errors": [{"message": "not logged in"}]})
        if path == "/graphql":
            asked = json.loads(body)
            named = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            name = asked.get("operationName") or (named and named[1]) or asked["query"][:60]
            given = state.graphql(name, asked.get("variables") or {}, asked["query"])
            return self._answer(given.pop("status", 200), given)
        if match := re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path):
            with state.lock:
                return self._answer(200, state.stream(match[2], match[3], json.loads(body)))
        state.unknown.append(f"{self.command} {path}")
        return self._answer(404)

    def _storage(self, state: Server, path: str, body: bytes) -> None:
        run, name = None, ""
        if match := re.fullmatch(r"runs/([^/]+)/([^/]+)/(.+)", path):
            run, name = state.run(match[1], match[2]), match[3]
        if self.command == "PUT":
            with state.lock:
                if run:
                    run.files[name] = body
                state.blobs[path] = body
            return self._answer(200)
        return self._answer(200, state.blobs[path]) if path in state.blobs else self._answer(404)
