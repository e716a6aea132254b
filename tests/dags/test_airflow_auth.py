"""What each role may do, by Airflow's own questions to an auth manager. On a running Airflow: tests/integration/test_roles.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("airflow")
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity

from infra.local import airflow_auth
from jobs.services import accounts
from jobs.services.accounts import ROLES

ENTITIES = (None, *DagAccessEntity)


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, airflow_auth.AccountUser]:
    file = tmp_path / "users.json"
    monkeypatch.setattr(airflow_auth, "_file", lambda: file)
    for role in ROLES:
        accounts.add(file, role, role)
    return {name: airflow_auth.AccountUser(account) for name, account in accounts.read(file).items()}


@pytest.fixture
def manager() -> airflow_auth.AccountsAuthManager:
    return airflow_auth.AccountsAuthManager()


def test_everybody_looks_and_a_viewer_changes_nothing(manager, users) -> None:
    for entity in ENTITIES:
        assert all(manager.is_authorized_dag(method="GET", user=user, access_entity=entity) for user in users.values())
        assert not any(manager.is_authorized_dag(method=method, user=users["viewer"], access_entity=entity) for method in ("POST", "PUT", "DELETE"))


def test_a_runner_runs_an_approver_answers_an_admin_deletes(manager, users) -> None:
    def who(method: str, entity: DagAccessEntity | None) -> list[str]:
        return [role for role in ROLES if manager.is_authorized_dag(method=method, user=users[role], access_entity=entity)]

    assert who("POST", DagAccessEntity.RUN) == who("PUT", DagAccessEntity.TASK_INSTANCE) == who("PUT", None) == ["runner", "approver", "admin"]
    assert who("PUT", DagAccessEntity.HITL_DETAIL) == ["approver", "admin"]
    assert who("PUT", DagAccessEntity.XCOM) == who("POST", DagAccessEntity.XCOM) == who("DELETE", DagAccessEntity.RUN) == ["admin"]


def test_settings_are_an_admins(manager, users) -> None:
    for asked in (manager.is_authorized_connection, manager.is_authorized_variable, manager.is_authorized_pool, manager.is_authorized_asset):
        assert [role for role in ROLES if asked(method="POST", user=users[role])] == ["admin"]
    assert [role for role in ROLES if manager.is_authorized_variable(method="GET", user=users[role])] == ["admin"], "variables may hold secrets"


def test_a_token_counts_as_long_as_its_account_and_session_do(manager, users) -> None:
    file, token = airflow_auth._file(), manager.serialize_user(users["runner"])
    assert manager.deserialize_user(token).account.role == "runner"
    accounts.change_role(file, "runner", "viewer")
    assert manager.deserialize_user(token).account.role == "viewer", "the role is the file's, not the token's"
    accounts.new_password(file, "runner")
    with pytest.raises(ValueError, match="sessions"):
        manager.deserialize_user(token)
    accounts.remove(file, "runner")
    for bad in (token, {"sub": "runner"}, {}, {"sub": "admin"}, {**token, "role": "ADMIN"}):
        with pytest.raises((KeyError, ValueError)):
            manager.deserialize_user(bad)


def test_the_question_can_only_be_answered_by_who_approves(manager, users) -> None:
    asked = {"runner", "approver"}
    assert [role for role in ROLES if manager.is_authorized_hitl_task(assigned_users=asked, user=users[role])] == ["approver"]


def test_where_a_person_was_to_be_asked_nothing_trains_without_a_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    build_model = pytest.importorskip("build_model")
    told: list[list[str]] = []
    monkeypatch.setattr(build_model.StageOperator, "execute", lambda self, context: told.append(self.arguments) or {})

    def train(decision: str, answer: dict | None) -> list[str]:
        pulled = {"forecast": {"metrics": {"decision": decision, "why": "over budget"}}, "approve": answer}
        operator = build_model.TrainOperator(task_id="train")
        operator.execute({"ti": SimpleNamespace(xcom_pull=lambda task_ids: pulled[task_ids])})
        return told.pop()

    yes = {"chosen_options": ["Approve"], "responded_by_user": {"id": "ann", "name": "ann"}}
    assert train("go", None) == []
    assert train("ask", yes) == ["--approved-by=ann"]
    for no in (None, {}, {"chosen_options": ["Reject"]}, {"chosen_options": []}, {"chosen_options": ["Approve", "Reject"]}):
        with pytest.raises(build_model.AirflowFailException, match="over budget, and nobody approved"):
            train("ask", no)
