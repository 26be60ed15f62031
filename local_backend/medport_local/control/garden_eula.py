"""Which terms somebody accepted for whom: what Model Garden asks before a gated model is deployed.

An acceptance is kept with who gave it and when; a deployment that fails does not take it back. It is for a model
under all of its names: which container serves it, or with which number format, changes nothing about its terms.
"""

from __future__ import annotations

import asyncio

from medport.errors import PreconditionFailed
from medport_local.control import records
from medport_local.control.asks import Ask, Json, Row
from medport_local.control.database import Database, Transaction
from medport_local.control.forms import Form, Text, read
from medport_local.control.project import Project
from medport_local.control.publishers import Catalogue, PublisherModel
from medport_local.model_identity import KnownModel

_PATH = "/v1beta1/projects/{project}/modelGardenEula"


class EulaForm(Form):
    """CheckPublisherModelEulaAcceptanceRequest and AcceptPublisherModelEulaRequest."""

    parent: Text = ""
    publisher_model: Text


class Eulas:
    """The acceptances of one project."""

    def __init__(self, project: Project, database: Database, catalogue: Catalogue) -> None:
        self._project = project
        self._database = database
        self._catalogue = catalogue

    def rows(self) -> tuple[Row, ...]:
        """The calls that this answers; their path names no location."""
        return (
            Row(
                method="POST",
                path=f"{_PATH}:check",
                handler=self.check,
                verb="aiplatform.modelGardenEula.check",
                operation="checkEula",
            ),
            Row(
                method="POST",
                path=f"{_PATH}:accept",
                handler=self.accept,
                verb="aiplatform.modelGardenEula.accept",
                operation="acceptEula",
            ),
        )

    async def check(self, ask: Ask) -> Json:
        """Whether a model's terms were accepted; true where it has none."""
        form, model = self._asked(ask)
        with self._database.reading() as tx:
            accepted = self._accepted(tx, model)
        return self._shown(form, accepted)

    async def accept(self, ask: Ask) -> Json:
        """Accept a model's terms for the project. The first acceptance is the one that is kept."""
        form, model = self._asked(ask)
        await asyncio.to_thread(self._database.write, lambda tx: self.note(tx, model, ask.caller))
        return self._shown(form, True)

    def note(self, tx: Transaction, model: PublisherModel, caller: str) -> None:
        """Keep that somebody accepted, unless somebody had before or there is nothing to accept."""
        gated = model.gated
        if gated is None or self._accepted(tx, model):
            return
        accepted = {
            "publisherModel": model.resource,
            "terms": {"name": gated.terms.name, "url": gated.terms.url},
            "acceptedBy": caller,
        }
        records.insert(tx, self._name(gated), "eula", self._parent, accepted)

    def check_accepted(self, tx: Transaction, model: PublisherModel) -> None:
        """Raise ``PreconditionFailed`` unless the terms were accepted, or there are none."""
        if model.gated is not None and not self._accepted(tx, model):
            terms = model.gated.terms
            raise PreconditionFailed(
                f"{model.model_id} is given out under the {terms.name} ({terms.url}), "
                "which nobody accepted for this project",
                field="model_config.accept_eula",
                remedy="read them, then set it to true, or POST modelGardenEula:accept once",
            )

    def _accepted(self, tx: Transaction, model: PublisherModel) -> bool:
        return model.gated is None or records.find(tx, self._name(model.gated)) is not None

    @property
    def _parent(self) -> str:
        return f"projects/{self._project.number}/modelGardenEula"

    def _name(self, gated: KnownModel) -> str:
        return f"{self._parent}/{gated.model_id}"

    def _asked(self, ask: Ask) -> tuple[EulaForm, PublisherModel]:
        self._project.check(ask.path["project"], "-")
        form = read(EulaForm, ask.body)
        return form, self._catalogue.find(form.publisher_model, field="publisher_model")

    def _shown(self, form: EulaForm, accepted: bool) -> Json:
        return {
            "projectNumber": self._project.number,
            "publisherModel": form.publisher_model,
            "publisherModelEulaAcked": accepted,
        }
