"""What each role may see and do in Airflow, and how people sign in: Airflow's simple auth manager over moeline's own accounts.

    viewer    sees DAGs, runs, logs and our pages; changes nothing
    runner    also starts, backfills, clears, pauses and stops runs
    approver  also answers the question whether money above the budget is spent
    admin     also deletes runs and XComs, changes pools, variables, connections

The simple auth manager itself keeps passwords as plain text, prints them, reads its users once, and believes for a day what a token says. Here every
request is held against the file of accounts. Change here: what a role may do. Not here: the accounts (jobs/services/accounts.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from airflow.api_fastapi.auth.managers.base_auth_manager import BaseAuthManager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.auth.managers.simple.datamodels.login import LoginBody, LoginResponse
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.auth.managers.simple.utils import parse_login_body
from airflow.configuration import conf
from fastapi import Depends, FastAPI, HTTPException

from jobs.services import accounts
from jobs.services.accounts import Account

# What the simple auth manager decides for us goes by its own roles; an approver's one more right is decided here.
_AIRFLOWS = {"viewer": "VIEWER", "runner": "USER", "approver": "USER", "admin": "ADMIN"}


class AccountUser(SimpleAuthManagerUser):
    """A signed-in person."""

    def __init__(self, account: Account) -> None:
        super().__init__(username=account.name, role=_AIRFLOWS[account.role])
        self.account = account


class AccountsAuthManager(SimpleAuthManager):
    """``[core] auth_manager`` of the platform; ``[moeline] accounts`` names the file."""

    def init(self) -> None:
        BaseAuthManager.init(self)  # without the simple one's own password file

    def deserialize_user(self, token: dict[str, Any]) -> AccountUser:
        """Raises KeyError or ValueError, which Airflow answers with a refusal, for an account that is gone or whose sessions were ended."""
        account = accounts.read(_file())[token["sub"]]
        if account.session != token["session"]:
            raise ValueError("the sessions of this account were ended")
        return AccountUser(account)

    def serialize_user(self, user: AccountUser) -> dict[str, Any]:
        return {"sub": user.username, "session": user.account.session}

    def is_authorized_dag(self, *, method: str, user: AccountUser, access_entity: DagAccessEntity | None = None, details: Any = None) -> bool:
        return user.account.may(needed(method, access_entity))

    def is_authorized_hitl_task(self, *, assigned_users: set[str], user: AccountUser) -> bool:
        return user.account.may("approver") and super().is_authorized_hitl_task(assigned_users=assigned_users, user=user)

    def get_fastapi_app(self) -> FastAPI:
        """Our two ways to sign in before everything else of the simple auth manager (its form, its static files)."""
        app = FastAPI(title="Sign in", docs_url=None, redoc_url=None, openapi_url=None)
        app.add_api_route("/token", _sign_in_by_form, methods=["POST"], status_code=201)
        app.add_api_route("/token/cli", _sign_in, methods=["POST"], status_code=201)
        app.mount("/", super().get_fastapi_app())
        return app


def needed(method: str, entity: DagAccessEntity | None) -> str:
    """The role that ``method`` on a part of a DAG needs.

    What an XCom says decides what is spent, and a deleted run is one nobody can look at any more: both are an admin's.
    """
    if method == "GET":
        return "viewer"
    if method == "DELETE" or entity is DagAccessEntity.XCOM:
        return "admin"
    return "approver" if entity is DagAccessEntity.HITL_DETAIL else "runner"


def _sign_in(body: LoginBody) -> LoginResponse:
    from airflow.api_fastapi.app import get_auth_manager

    account = accounts.signed_in(_file(), body.username, body.password)
    if account is None:
        raise HTTPException(401, "Invalid credentials")
    return LoginResponse(access_token=get_auth_manager().generate_jwt(AccountUser(account)))


def _sign_in_by_form(body: Annotated[LoginBody, Depends(parse_login_body)]) -> LoginResponse:
    return _sign_in(body)


def _file() -> Path:
    return Path(conf.get("moeline", "accounts"))
