"""The W&B server: which one, with which key, whether it is there, what it has of a run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

TIMEOUT = 20.0
"""Seconds for one answer of the server."""

PROBE_SECONDS = 2.0
"""How long a server may take to show that it is there."""


def base_url() -> str:
    """The server that the W&B client would use: its default changes, so it is written nowhere."""
    from wandb.sdk import wandb_setup

    return str(wandb_setup.singleton().settings.base_url).rstrip("/")


def api_key() -> str | None:
    """The key that the W&B client would use, from the environment or from `wandb login`."""
    from wandb.sdk.lib import wbauth

    auth = wbauth.authenticate_session(
        host=base_url(), source="kgon", prompt=False, update_session=False
    )
    return auth.api_key if isinstance(auth, wbauth.AuthApiKey) else None


class ServerError(Exception):
    """The server did not answer, or refused; says why."""


class OnServer(NamedTuple):
    """What the server has of a run: the number of rows and the last step (0 and -1 without it)."""

    n_rows: int
    last_step: int


@dataclass(frozen=True)
class Server:
    """The questions that are put to W&B.

    Attributes:
        url: of the server.
        key: the API key; it goes into the header of a request and nowhere else.
    """

    url: str
    key: str

    def trouble(self) -> str:
        """Why it cannot be used at present, asked once and shortly; empty if it can."""
        try:
            viewer = self.ask(_VIEWER, timeout=PROBE_SECONDS, tries=1)["viewer"]
        except (ServerError, ValueError) as error:
            return str(error)
        return "" if viewer else f"{self.url} does not know the API key"

    def ask(
        self, query: str, *, timeout: float = TIMEOUT, tries: int = 3, **variables: Any
    ) -> dict[str, Any]:
        """The data that a GraphQL query gives; ServerError without an answer, ValueError where the
        server does not know the question."""
        import requests

        problem = ""
        for _ in range(tries):
            try:
                answer = requests.post(
                    f"{self.url}/graphql",
                    json={"query": query, "variables": variables},
                    auth=("api", self.key),
                    timeout=timeout,
                )
            except requests.RequestException as error:
                problem = f"{self.url} does not answer ({type(error).__name__})"
                continue
            if answer.status_code in (401, 403):
                raise ServerError(f"{self.url} refuses the API key ({answer.status_code})")
            if answer.status_code == 200:
                data = answer.json()
                if data.get("errors"):
                    raise ValueError(str(data["errors"])[:200])
                found: dict[str, Any] = data["data"]
                return found
            problem = f"{self.url} answers {answer.status_code}"
        raise ServerError(problem)

    def run(self, entity: str, project: str, run_id: str) -> OnServer:
        """What it has of a run's history."""
        data = self.ask(_RUN, entity=entity or None, project=project, name=run_id)
        bucket = (data["model"] or {}).get("bucket")
        if not bucket or not bucket["historyLineCount"]:
            return OnServer(0, -1)
        tail = json.loads(bucket["historyTail"] or "[]")
        rows = [json.loads(row) if isinstance(row, str) else row for row in tail]
        last = max((row["_step"] for row in rows if "_step" in row), default=-1)
        return OnServer(bucket["historyLineCount"], last)

    def files(self, entity: str, project: str, run_id: str, names: Sequence[str]) -> set[str]:
        """Which of these files of a run it has."""
        found: set[str] = set()
        for start in range(0, len(names), _PAGE):
            some = list(names[start : start + _PAGE])
            data = self.ask(
                _FILES,
                entity=entity or None,
                project=project,
                name=run_id,
                fileNames=some,
                fileLimit=len(some),
            )
            run = (data["project"] or {}).get("run") or {"files": {"edges": []}}
            found |= {e["node"]["name"] for e in run["files"]["edges"] if e["node"]["sizeBytes"]}
        return found

    def artifacts(self, entity: str, project: str, run_id: str) -> set[str]:
        """The digests of the artifacts that a run left there, complete ones."""
        found: set[str] = set()
        cursor = None
        while True:
            data = self.ask(
                _ARTIFACTS,
                entity=entity or None,
                project=project,
                run=run_id,
                cursor=cursor,
                perPage=_PAGE,
            )
            run = (data["project"] or {}).get("run")
            if not run:
                return found
            page = run["artifacts"]
            nodes = [edge["node"] for edge in page["edges"]]
            found |= {node["digest"] for node in nodes if node["state"] == "COMMITTED"}
            if not page["pageInfo"]["hasNextPage"]:
                return found
            cursor = page["pageInfo"]["endCursor"]


_PAGE = 200
# Under the names of the client's own questions, which every server of the protocol knows.
_VIEWER = "query Viewer { viewer { id } }"
_RUN = """query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) {
    bucket(name: $name, missingOk: true) { historyLineCount historyTail }
  }
}"""
_FILES = """query RunFiles($project: String!, $entity: String, $name: String!,
    $fileNames: [String], $fileLimit: Int) {
  project(name: $project, entityName: $entity) {
    run(name: $name) {
      files(names: $fileNames, first: $fileLimit) { edges { node { name sizeBytes } } }
    }
  }
}"""
_ARTIFACTS = """query RunOutputArtifacts($entity: String, $project: String!, $run: String!,
    $cursor: String, $perPage: Int) {
  project(entityName: $entity, name: $project) {
    run(name: $run) {
      artifacts: outputArtifacts(after: $cursor, first: $perPage) {
        pageInfo { hasNextPage endCursor }
        edges { node { digest state } }
      }
    }
  }
}"""
