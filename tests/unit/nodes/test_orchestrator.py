"""The orchestrator runs the contract's plan: bad items alone, failures recorded, nothing pretended."""

import asyncio
import logging
from datetime import UTC, datetime
from uuid import UUID, uuid4

import msgspec
import pytest
from omnibase_core.enums.enum_core_error_code import EnumCoreErrorCode
from omnibase_core.models.container.model_onex_container import ModelONEXContainer
from omnibase_core.models.errors.model_onex_error import ModelOnexError
from omnibase_core.models.orchestrator.model_orchestrator_input import ModelOrchestratorInput

from omninode_bridge.domain.errors import (
    Conflict,
    ContentUnavailable,
    OutcomeUnknown,
    Overloaded,
    SchemaMismatch,
    ServiceUnavailable,
    WorkflowFailed,
)
from omninode_bridge.domain.stamp import Claimed, FileFacts, LocalFile, Stamp, Streamed
from omninode_bridge.nodes.container import build_container, resolve
from omninode_bridge.nodes.contracts import load_orchestrator
from omninode_bridge.nodes.onex_errors import EnumBridgeErrorCode
from omninode_bridge.nodes.orchestrator.v1_0_0.models import (
    EnumWorkflowState,
    ModelStampRequestInput,
    ModelStampResponseOutput,
)
from omninode_bridge.nodes.orchestrator.v1_0_0.node import NodeBridgeOrchestrator
from omninode_bridge.nodes.orchestrator.v1_0_0.recent import WORKFLOWS_REMEMBERED_MAX
from omninode_bridge.ports import Ledger
from tests.making import COMPLETED, FAILED, digest, hash_of, new_id, request
from tests.unit.nodes.assembly import (
    QUICK,
    Bench,
    ScriptedHasher,
    ScriptedIntelligence,
    ScriptedLedger,
    edited,
    never,
)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def quick() -> Bench:
    return Bench(load_orchestrator(edited("orchestrator", QUICK)))


def onex_request(**fields: object) -> ModelStampRequestInput:
    given = {"file_path": "a.pdf", "file_content": b"bytes", "content_type": "application/pdf", **fields}
    return ModelStampRequestInput.model_validate(given)


class TestThePlainDoor:
    async def test_a_batch_is_answered_in_order(self, bench: Bench) -> None:
        node = await bench.node()
        asked = [request(f"{i}.txt", b"%d" % i) for i in range(20)]
        answers = await node.run_many(asked)
        assert [answer.file_path for answer in answers if isinstance(answer, Stamp)] == [r.file_path for r in asked]
        assert bench.topics() == {COMPLETED: 20}
        assert {answer.workflow_steps_executed for answer in answers if isinstance(answer, Stamp)} == {2}
        assert await node.run_many([]) == []

    async def test_claimed_content_is_never_hashed(self, bench: Bench) -> None:
        hasher = ScriptedHasher()
        node = await bench.node(hasher=hasher)
        claimed = msgspec.structs.replace(request("c.bin"), content=Claimed(hash_of(b"c"), 1))
        stamp = await node.run(claimed)
        assert (stamp.digest_origin, stamp.file_hash, stamp.workflow_steps_executed) == ("claimed", hash_of(b"c"), 1)
        assert hasher.calls == []

    async def test_streamed_content_was_hashed_as_it_arrived(self, bench: Bench) -> None:
        hasher = ScriptedHasher()
        node = await bench.node(hasher=hasher)
        streamed = msgspec.structs.replace(request("s.bin"), content=Streamed(digest(b"s")))
        stamp = await node.run(streamed)
        assert (stamp.digest_origin, stamp.file_hash, stamp.workflow_steps_executed) == ("computed", hash_of(b"s"), 2)
        assert hasher.calls == []

    async def test_an_unreadable_content_is_its_own_answer_and_no_workflow(self, bench: Bench) -> None:
        node = await bench.node()
        missing = LocalFile("/nonexistent/file", FileFacts(1, 2, 3, 4, 5))
        lost = msgspec.structs.replace(request("lost.txt"), content=missing)
        answers = await node.run_many([request("a.txt"), lost, request("b.txt")])
        assert [type(answer) for answer in answers] == [Stamp, type(answers[1]), Stamp]
        assert isinstance(answers[1], ContentUnavailable)
        assert isinstance(answers[2], Stamp)
        assert answers[2].file_path == "b.txt"
        assert len(bench.store.workflows) == 2
        assert node.get_workflow_state(lost.workflow_id) is None
        with pytest.raises(ContentUnavailable):
            await node.run(lost)

    async def test_a_step_that_fails_for_good_ends_in_failed_with_an_event(self, bench: Bench) -> None:
        broken = RuntimeError("no such device\0")
        node = await bench.node(hasher=ScriptedHasher(broken))
        asked = [request("a.txt"), msgspec.structs.replace(request("c.bin"), content=Claimed(hash_of(b"c"), 1))]
        failed, stamped = await node.run_many(asked)
        assert isinstance(failed, WorkflowFailed)
        assert failed.__cause__ is broken
        assert failed.context["step"] == "hash"
        assert failed.context["error_code"] == "step_failed"
        assert isinstance(stamped, Stamp)
        assert bench.topics() == {COMPLETED: 1, FAILED: 1}
        assert bench.states(asked[0].workflow_id) == ["pending", "processing", "failed"]
        assert node.get_workflow_state(asked[0].workflow_id) is EnumWorkflowState.FAILED

    async def test_a_service_that_comes_back_is_waited_for_as_the_contract_says(self, bench: Bench) -> None:
        hasher = ScriptedHasher(ServiceUnavailable("down"), Overloaded("full"))
        node = await bench.node(hasher=hasher)
        assert isinstance(await node.run(request()), Stamp)
        assert len(hasher.calls) == 3
        assert node.get_stamping_metrics()["retries"] == 2

    async def test_a_service_that_stays_away_fails_the_workflow(self, bench: Bench) -> None:
        hasher = ScriptedHasher(*[ServiceUnavailable("down")] * 3)
        node = await bench.node(hasher=hasher)
        with pytest.raises(WorkflowFailed) as failed:
            await node.run(request())
        assert failed.value.context["error_code"] == "service_unavailable"
        assert len(hasher.calls) == 3

    async def test_what_retrying_cannot_mend_is_not_retried(self, bench: Bench) -> None:
        hasher = ScriptedHasher(ContentUnavailable("gone"))
        node = await bench.node(hasher=hasher)
        with pytest.raises(WorkflowFailed):
            await node.run(request())
        assert len(hasher.calls) == 1

    async def test_a_hung_step_fails_by_its_timeout(self, quick: Bench) -> None:
        node = await quick.node(hasher=ScriptedHasher(never, never, never))
        with pytest.raises(WorkflowFailed) as failed:
            await node.run(request())
        assert failed.value.context["error_code"] == "timeout"

    async def test_a_large_content_has_as_much_more_time_as_the_slowest_storage_takes(self) -> None:
        async def slow() -> None:
            await asyncio.sleep(0.3)  # a slow disk: three times the step's own limit

        edits = QUICK | {"config.steps[0].retry_count": 0, "config.hash_mib_per_s_min": 1}
        bench = Bench(load_orchestrator(edited("orchestrator", edits)))
        node = await bench.node(hasher=ScriptedHasher(slow, slow))
        with pytest.raises(WorkflowFailed):
            await node.run(request("small", b"a"))
        assert isinstance(await node.run(request("large", bytes(2 * 1024**2))), Stamp)

    async def test_what_waits_for_its_commit_does_not_hold_its_content(self, bench: Bench) -> None:
        ledger = ScriptedLedger(bench.memory_ledger)
        await (await bench.node(ledger=ledger)).run(request(content=b"gigabytes"))
        assert b"gigabytes" not in repr(ledger.calls).encode()

    async def test_all_steps_together_have_a_limit(self) -> None:
        edits = {
            "config.steps[0].timeout_ms": 1000,
            "config.steps[0].retry_count": 5,
            "config.steps[1].timeout_ms": 1000,
            "config.steps[2].timeout_ms": 1000,
            "config.stamping.request_timeout_ms": 1000,
            "workflow_coordination.timeout_ms": 1000,
        }
        bench = Bench(load_orchestrator(edited("orchestrator", edits)))
        hasher = ScriptedHasher(*[never] * 6)
        asked = request()
        with pytest.raises(WorkflowFailed) as failed:
            await (await bench.node(hasher=hasher)).run(asked)
        assert failed.value.context["error_code"] == "timeout"
        assert len(hasher.calls) == 1
        assert bench.states(asked.workflow_id)[-1] == "failed"

    async def test_the_ledger_is_tried_again_when_nothing_was_recorded(self, bench: Bench) -> None:
        ledger = ScriptedLedger(bench.memory_ledger, ServiceUnavailable("restarting"), Overloaded("full"))
        node = await bench.node(ledger=ledger)
        asked = request()
        assert isinstance(await node.run(asked), Stamp)
        given = [outcomes[0].request.op_id_given for outcomes in ledger.calls]
        assert given == [False, True, True]  # a repeated id is looked up, whoever chose it

    @pytest.mark.parametrize("error", [OutcomeUnknown("lost in COMMIT"), SchemaMismatch("older")])
    async def test_what_may_be_recorded_is_not_repeated_behind_the_callers_back(
        self, bench: Bench, error: ServiceUnavailable
    ) -> None:
        ledger = ScriptedLedger(bench.memory_ledger, error)
        node = await bench.node(ledger=ledger)
        asked = request()
        with pytest.raises(type(error)):
            await node.run(asked)
        assert len(ledger.calls) == 1
        assert node.get_workflow_state(asked.workflow_id) is None
        assert node.get_stamping_metrics()["requests_unanswered"] == 1
        assert isinstance(await node.run(asked), Stamp)

    async def test_a_ledger_that_hangs_leaves_the_outcome_unknown(self, quick: Bench) -> None:
        ledger = ScriptedLedger(quick.memory_ledger, never)
        node = await quick.node(ledger=ledger)
        asked = request()
        with pytest.raises(OutcomeUnknown, match="same op_id") as unknown:
            await node.run(asked)
        assert unknown.value.context["op_ids"] == [asked.workflow_id]
        assert len(ledger.calls) == 1

    async def test_a_ledger_that_stays_away_is_said_to_be_down(self) -> None:
        bench = Bench(load_orchestrator(edited("orchestrator", {"config.steps[2].retry_count": 1})))
        ledger = ScriptedLedger(bench.memory_ledger, *[ServiceUnavailable("down")] * 2)
        node = await bench.node(ledger=ledger)
        with pytest.raises(ServiceUnavailable, match="down"):
            await node.run(request())
        assert bench.store.workflows == {}


class TestIntelligence:
    async def test_only_those_who_ask_are_analysed(self, bench: Bench) -> None:
        intelligence = ScriptedIntelligence()
        node = await bench.node(intelligence=intelligence)
        asking, other = request("a.txt", enable_intelligence=True), request("b.txt")
        first, second = await node.run_many([asking, other])
        assert isinstance(first, Stamp)
        assert isinstance(second, Stamp)
        assert (first.intelligence, first.workflow_steps_executed) == ({"named": "a.txt"}, 3)
        assert (second.intelligence, second.workflow_steps_executed) == (None, 2)
        assert intelligence.asked == ["a.txt"]

    @pytest.mark.parametrize(
        "intelligence",
        [
            ScriptedIntelligence(RuntimeError("model broken")),
            ScriptedIntelligence(ServiceUnavailable("down")),
            ScriptedIntelligence(never),
            ScriptedIntelligence(answer={"text": "a\0b"}),
            ScriptedIntelligence(answer={"much": "x" * 70_000}),
            None,
        ],
        ids=["error", "down", "hangs", "not storable", "too much", "none registered"],
    )
    async def test_its_failure_never_fails_a_stamp(
        self, quick: Bench, intelligence: ScriptedIntelligence | None
    ) -> None:
        node = await quick.node(intelligence=intelligence)
        stamp = await node.run(request(enable_intelligence=True))
        assert stamp.intelligence is None
        assert node.get_stamping_metrics()["intelligence_missing"] == 1


class TestManyWorkflows:
    async def test_interleaved_workflows_do_not_disturb_each_other(self, bench: Bench) -> None:
        gate = asyncio.Event()
        arrived = asyncio.Event()

        async def wait() -> None:
            arrived.set()
            await gate.wait()

        node = await bench.node(hasher=ScriptedHasher(wait, ValueError("broken")))
        slow, failing, quick = request("slow.txt"), request("failing.txt"), request("quick.txt")
        first = asyncio.create_task(node.run(slow))
        await arrived.wait()
        with pytest.raises(WorkflowFailed):
            await node.run(failing)
        await node.run(quick)
        assert node.get_workflow_state(slow.workflow_id) is EnumWorkflowState.PROCESSING
        assert node.get_workflow_state(failing.workflow_id) is EnumWorkflowState.FAILED
        assert node.get_workflow_state(UUID(quick.workflow_id)) is EnumWorkflowState.COMPLETED
        gate.set()
        await first
        assert node.get_workflow_state(slow.workflow_id) is EnumWorkflowState.COMPLETED
        assert bench.states(slow.workflow_id) == ["pending", "processing", "completed"]

    async def test_a_hundred_at_once_all_end_as_they_should(self, bench: Bench) -> None:
        node = await bench.node()
        asked = [request(f"{i}.txt", b"%d" % i) for i in range(100)]
        stamps = await asyncio.gather(*(node.run(each) for each in asked))
        assert [stamp.workflow_id for stamp in stamps] == [each.workflow_id for each in asked]
        assert {node.get_workflow_state(each.workflow_id) for each in asked} == {EnumWorkflowState.COMPLETED}
        metrics = node.get_stamping_metrics()
        assert (metrics["requests"], metrics["stamped"], metrics["batches"]) == (100, 100, 100)

    async def test_memory_of_recent_workflows_is_bounded(self, bench: Bench) -> None:
        node = await bench.node()
        asked = [msgspec.structs.replace(request(f"{i}"), content=Claimed(hash_of(b""), 0)) for i in range(4000)]
        for _ in range(4):
            batch = [msgspec.structs.replace(each, workflow_id=new_id()) for each in asked]
            await node.run_many(batch)
        assert node.get_stamping_metrics()["workflows_remembered"] <= WORKFLOWS_REMEMBERED_MAX
        assert node.get_workflow_state(batch[-1].workflow_id) is EnumWorkflowState.COMPLETED

    async def test_a_conflict_does_not_change_what_is_known_of_the_first(self, bench: Bench) -> None:
        node = await bench.node()
        op = new_id()
        await node.run(request("a.txt", b"one", op=op))
        with pytest.raises(Conflict):
            await node.run(request("a.txt", b"two", op=op))
        assert node.get_workflow_state(op) is EnumWorkflowState.COMPLETED


class TestTheOnexDoor:
    async def test_both_doors_give_the_same_stamp(self, bench: Bench) -> None:
        op = uuid4()
        through_onex = await (await bench.node()).execute_stamping_workflow(
            onex_request(op_id=op, namespace="legal.docs", metadata={"project": "x"})
        )
        other = Bench()
        plain = await (await other.node()).run(
            request("a.pdf", b"bytes", op=str(op), namespace="legal.docs", content_type="application/pdf",
                    metadata={"project": "x"}, stamped_by="onex")
        )  # fmt: skip
        timed = {"created_at", "completed_at", "processing_time_ms", "hash_generation_time_ms", "stamp_id"}
        fields = set(plain.__struct_fields__) - timed - {"workflow_id", "op_id"}
        assert {name: getattr(through_onex, name) for name in fields} == {name: getattr(plain, name) for name in fields}
        assert (through_onex.workflow_id, through_onex.op_id) == (op, op)
        assert isinstance(through_onex, ModelStampResponseOutput)
        assert through_onex.stamp_metadata["file_hash"] == plain.file_hash

    async def test_the_same_op_id_gets_the_first_answer(self, bench: Bench) -> None:
        node = await bench.node()
        asked = onex_request(op_id=uuid4())
        assert (await node.execute_stamping_workflow(asked)).stamp_id == (
            await node.execute_stamping_workflow(asked)
        ).stamp_id
        with pytest.raises(ModelOnexError) as conflict:
            await node.execute_stamping_workflow(asked.model_copy(update={"file_content": b"other"}))
        assert conflict.value.error_code == EnumBridgeErrorCode.OP_ID_CONFLICT

    async def test_intelligence_comes_under_both_names(self, bench: Bench) -> None:
        node = await bench.node(intelligence=ScriptedIntelligence())
        answer = await node.execute_stamping_workflow(onex_request(enable_onextree_intelligence=True))
        assert answer.intelligence_data == answer.intelligence == {"named": "a.pdf"}

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"namespace": "Not Legal"}, "namespace"),
            ({"file_path": ""}, "file_path"),
            ({"content_type": "pdf"}, "content_type"),
            ({"metadata": {"x": float("nan")}}, "metadata"),
        ],
    )
    async def test_bad_names_are_validation_errors(self, bench: Bench, fields: dict[str, object], field: str) -> None:
        node = await bench.node()
        with pytest.raises(ModelOnexError) as refused:
            await node.execute_stamping_workflow(onex_request(**fields))
        assert refused.value.error_code == EnumCoreErrorCode.VALIDATION_ERROR
        assert refused.value.__cause__ is not None
        assert field in refused.value.message
        assert bench.store.workflows == {}

    @pytest.mark.parametrize(
        ("trouble", "code"),
        [
            (ValueError("broken"), EnumCoreErrorCode.OPERATION_FAILED),
            (ContentUnavailable("gone"), EnumCoreErrorCode.OPERATION_FAILED),
            (SchemaMismatch("older"), EnumCoreErrorCode.OPERATION_FAILED),
            (TimeoutError(), EnumCoreErrorCode.TIMEOUT),
            (ServiceUnavailable("down"), EnumCoreErrorCode.SERVICE_UNAVAILABLE),
        ],
    )
    async def test_a_failed_workflow_raises_with_a_code_and_is_published(
        self, bench: Bench, trouble: Exception, code: EnumCoreErrorCode
    ) -> None:
        node = await bench.node(hasher=ScriptedHasher(*[trouble] * 3))
        with pytest.raises(ModelOnexError) as failed:
            await node.execute_stamping_workflow(onex_request())
        assert failed.value.error_code == code
        assert isinstance(failed.value.__cause__, WorkflowFailed)
        assert bench.topics() == {FAILED: 1}
        (workflow,) = bench.store.workflows.values()
        assert workflow.state == "failed"

    @pytest.mark.parametrize(
        ("trouble", "code"),
        [
            (OutcomeUnknown("?"), EnumCoreErrorCode.SERVICE_UNAVAILABLE),
            (SchemaMismatch("older"), EnumCoreErrorCode.DATABASE_CONNECTION_ERROR),
        ],
    )
    async def test_a_ledger_in_trouble_raises_with_its_code(
        self, bench: Bench, trouble: Exception, code: EnumCoreErrorCode
    ) -> None:
        node = await bench.node(ledger=ScriptedLedger(bench.memory_ledger, trouble))
        with pytest.raises(ModelOnexError) as failed:
            await node.execute_stamping_workflow(onex_request())
        assert failed.value.error_code == code
        assert failed.value.__cause__ is trouble


class TestTheInheritedDoor:
    async def test_process_plans_exactly_what_the_executor_runs(self, bench: Bench) -> None:
        node = await bench.node()
        empty = ModelOrchestratorInput(workflow_id=uuid4(), steps=[])
        for asked in (node.plan_input(), empty):
            output = await node.process(asked)
            planned = [
                (action.payload.metadata["step_name"], action.timeout_ms, action.retry_count)
                for action in output.actions_emitted
            ]
            assert planned == [(step.name, step.timeout_ms, step.retries) for step in bench.contract.plan.steps]
            names = {step.step_id: step.step_name for step in bench.contract.steps}
            edges = [tuple(names[step_id] for step_id in action.dependencies) for action in output.actions_emitted]
            assert edges == [step.depends_on for step in bench.contract.plan.steps]
        assert bench.store.workflows == {}

    async def test_the_steps_run_in_the_planned_order(self, bench: Bench) -> None:
        ran: list[str] = []

        async def note(name: str) -> None:
            ran.append(name)

        node = await bench.node(
            hasher=ScriptedHasher(lambda: note("hash")),
            intelligence=ScriptedIntelligence(lambda: note("intelligence")),
            ledger=ScriptedLedger(bench.memory_ledger, lambda: note("stamp")),
        )
        await node.run(request(enable_intelligence=True))
        assert ran == [step.name for step in bench.contract.plan.steps]

    async def test_process_leaves_the_root_logger_alone(self, bench: Bench) -> None:
        node = await bench.node()
        before = list(logging.root.handlers)
        logging.root.handlers.clear()
        try:
            await node.process(node.plan_input())
            assert logging.root.handlers == []
        finally:
            logging.root.handlers[:] = before


class TestABareContainer:
    async def test_the_node_is_made_and_says_what_is_missing_when_run(self) -> None:
        node = NodeBridgeOrchestrator(ModelONEXContainer())
        with pytest.raises(ModelOnexError, match="the container has no Ledger") as missing:
            await node.execute_stamping_workflow(onex_request())
        assert missing.value.error_code == EnumCoreErrorCode.DEPENDENCY_UNAVAILABLE
        with pytest.raises(ModelOnexError, match="no Ledger"):
            await node.run(request())
        assert len((await node.process(node.plan_input())).actions_emitted) == 3

    async def test_each_missing_port_is_named(self, bench: Bench) -> None:
        have = {"ledger": bench.memory_ledger, "hasher": ScriptedHasher(), "clock": bench.clock, "ids": bench.ids}
        for absent, name in (("hasher", "Hasher"), ("clock", "Clock"), ("ids", "IdSource")):
            container = await build_container(**{key: port for key, port in have.items() if key != absent})
            with pytest.raises(ModelOnexError, match=f"the container has no {name}:") as missing:
                await NodeBridgeOrchestrator(container).execute_stamping_workflow(onex_request())
            assert missing.value.error_code == EnumCoreErrorCode.DEPENDENCY_UNAVAILABLE

    async def test_what_was_registered_comes_out(self, bench: Bench) -> None:
        container = await build_container(ledger=bench.memory_ledger)
        assert await resolve(container, Ledger) is bench.memory_ledger


async def test_the_clock_is_read_for_the_batch_not_for_the_item(bench: Bench) -> None:
    node = await bench.node()
    await node.run(request())
    before = bench.clock.now
    await node.run_many([request(f"{i}") for i in range(50)])
    readings = (bench.clock.now - before) / bench.clock.step
    assert readings == 3  # accepted, started, recorded
    assert bench.clock.now < datetime(2027, 1, 1, tzinfo=UTC)
