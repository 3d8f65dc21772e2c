//! Single decisions of the plan, told as short stories.

use super::*;
use crate::flow::Priority::{self, Batch, Interactive, Live};

const RULES: Rules =
    Rules { idle: Duration::from_secs(100), wait: Duration::from_secs(60), patience: Duration::from_secs(20) };

/// A plan with its clock and its tickets.
struct Desk {
    plan: Plan,
    at: Duration,
    next: u64,
}

fn desk(limit: u64) -> Desk {
    Desk { plan: Plan::new(RULES, limit, BTreeMap::new()), at: Duration::ZERO, next: 0 }
}

fn key(model: &str) -> ModelKey {
    ModelKey { model: model.to_owned(), variant: "q4".to_owned(), provider: "cuda".to_owned() }
}

fn need(model: &str, bytes: u64, priority: Priority) -> Need {
    Need {
        key: key(model),
        estimate_bytes: bytes,
        workspace_bytes: 0,
        priority,
        resident: false,
        yields: false,
        instead_of: None,
    }
}

fn resident(model: &str, bytes: u64, priority: Priority) -> Need {
    Need { resident: true, ..need(model, bytes, priority) }
}

fn yielding(model: &str, bytes: u64) -> Need {
    Need { yields: true, ..need(model, bytes, Batch) }
}

fn load(need: &Need) -> Action {
    Action::Load(need.clone())
}

fn grant(ticket: Ticket, model: &str) -> Action {
    Action::Grant(ticket, key(model))
}

fn unload(model: &str) -> Action {
    Action::Unload(key(model))
}

impl Desk {
    fn step(&mut self, event: Event) -> Vec<Action> {
        self.at += Duration::from_secs(1);
        self.plan.step(self.at, event)
    }

    fn ask(&mut self, need: &Need) -> (Ticket, Vec<Action>) {
        let ticket = Ticket(self.next);
        self.next += 1;
        (ticket, self.step(Event::Asked(ticket, need.clone())))
    }

    fn loaded(&mut self, model: &str, measured: Option<u64>) -> Vec<Action> {
        self.step(Event::Loaded(key(model), measured))
    }

    fn failed(&mut self, model: &str, failure: Failure) -> Vec<Action> {
        self.step(Event::LoadFailed(key(model), failure))
    }

    fn unloaded(&mut self, model: &str) -> Vec<Action> {
        self.step(Event::Unloaded(key(model)))
    }

    fn gone(&mut self, ticket: Ticket) -> Vec<Action> {
        self.step(Event::Gone(ticket))
    }

    /// Loaded and leased.
    fn held(&mut self, need: &Need) -> Ticket {
        let model = need.key.model.clone();
        let (ticket, mut actions) = self.ask(need);
        if actions == [load(need)] {
            actions = self.loaded(&model, None);
        }
        assert_eq!(actions, [grant(ticket, &model)]);
        ticket
    }

    /// Loaded, used and idle.
    fn idle(&mut self, need: &Need) {
        let ticket = self.held(need);
        assert_eq!(self.gone(ticket), []);
    }
}

#[test]
fn a_load_is_shared_by_all_who_wait_for_it() {
    let mut desk = desk(10);
    let need = need("a", 4, Batch);
    let (first, actions) = desk.ask(&need);
    assert_eq!(actions, [load(&need)]);
    let (second, actions) = desk.ask(&need);
    assert_eq!(actions, []);
    assert_eq!(desk.loaded("a", Some(3)), [grant(first, "a"), grant(second, "a")]);
    assert_eq!(desk.plan.reserved(), 3, "measured");
    let (third, actions) = desk.ask(&need);
    assert_eq!(actions, [grant(third, "a")]);
}

#[test]
fn what_a_model_works_in_stays_reserved_when_its_load_was_measured() {
    let mut desk = desk(20);
    let need = Need { workspace_bytes: 5, ..need("a", 4, Live) };
    let (ticket, actions) = desk.ask(&need);
    assert_eq!((actions, desk.plan.reserved()), (vec![load(&need)], 9));
    assert_eq!(desk.loaded("a", Some(3)), [grant(ticket, "a")]);
    assert_eq!(desk.plan.reserved(), 8, "3 were seen, 5 it may still take");
    for (seen, reserved) in [(7, 8), (11, 11), (4, 11)] {
        desk.step(Event::Measured(key("a"), seen));
        assert_eq!(desk.plan.reserved(), reserved, "{seen}");
    }
    let known = BTreeMap::from([(key("a"), Seen { loaded: Some(3), most: 6 })]);
    let plan = Plan::new(RULES, 20, known);
    assert_eq!(plan.cost(&need), 8, "in the next life too");
    assert_eq!(plan.cost(&Need { workspace_bytes: 2, ..need }), 6, "more was seen than is expected");
}

#[test]
fn models_load_beside_each_other_when_both_fit() {
    let mut desk = desk(10);
    let (a, b, c) = (need("a", 4, Batch), need("b", 6, Batch), need("c", 1, Live));
    assert_eq!(desk.ask(&a).1, [load(&a)]);
    assert_eq!(desk.ask(&b).1, [load(&b)]);
    assert_eq!(desk.ask(&c).1, []);
}

#[test]
fn what_can_never_fit_is_refused_at_once_with_the_numbers() {
    let mut desk = desk(10);
    desk.idle(&resident("whisper", 3, Live));
    let (ticket, actions) = desk.ask(&need("paint", 8, Live));
    let numbers = Numbers { wanted: 8, limit: 10, reserved: 3, kept: 3 };
    assert_eq!(actions, [Action::Refuse(ticket, key("paint"), Refusal::OverBudget(numbers))]);
    assert_eq!(desk.ask(&need("paint", 7, Batch)).1, [load(&need("paint", 7, Batch))]);
}

#[test]
fn the_least_valuable_leave_and_no_more_than_needed() {
    let mut desk = desk(10);
    desk.idle(&need("live", 2, Live));
    desk.idle(&need("batch", 3, Batch));
    desk.idle(&need("older", 2, Interactive));
    desk.idle(&need("newer", 2, Interactive));
    let wanted = need("new", 4, Batch);
    // One is free, so three are lacking: the batch model alone is enough.
    assert_eq!(desk.ask(&wanted).1, [unload("batch")]);
    assert_eq!(desk.unloaded("batch"), [load(&wanted)]);
    desk.loaded("new", None);
    // The oldest of the interactive ones goes before the live one, which is older.
    assert_eq!(desk.ask(&need("next", 2, Batch)).1, [unload("older")]);
}

#[test]
fn residents_leave_for_higher_priority_alone_and_last() {
    let mut desk = desk(10);
    desk.idle(&resident("stays", 5, Interactive));
    desk.idle(&need("other", 5, Live));
    assert_eq!(desk.ask(&need("a", 5, Live)).1, [unload("other")]);
    let a = need("a", 5, Live);
    assert_eq!(desk.unloaded("other"), [load(&a)]);
    let held = desk.loaded("a", None);
    assert_eq!(held.len(), 1);
    // A wait for the lease of `a` would do: the resident stays.
    assert_eq!(desk.ask(&need("b", 5, Live)).1, []);
    // Nothing else is enough for this one.
    let (_, actions) = desk.ask(&need("c", 9, Interactive));
    assert!(matches!(actions[..], [Action::Refuse(_, _, Refusal::OverBudget(Numbers { kept: 5, .. }))]), "{actions:?}");
}

#[test]
fn a_resident_leaves_when_nothing_else_is_enough() {
    let mut desk = desk(10);
    desk.idle(&resident("stays", 5, Interactive));
    let big = need("big", 8, Live);
    assert_eq!(desk.ask(&big).1, [unload("stays")]);
    assert_eq!(desk.unloaded("stays"), [load(&big)]);
}

#[test]
fn batch_work_that_yields_is_asked_once_and_makes_way() {
    let mut desk = desk(10);
    let batch = desk.held(&yielding("llm", 8));
    let live = need("asr", 4, Live);
    let (ticket, actions) = desk.ask(&live);
    assert_eq!(actions, [Action::AskToYield(batch)]);
    assert_eq!(desk.step(Event::Tick), []);
    assert_eq!(desk.gone(batch), [unload("llm")]);
    let (again, actions) = desk.ask(&yielding("llm", 8));
    assert_eq!(actions, []);
    assert_eq!(desk.unloaded("llm"), [load(&live)]);
    assert_eq!(desk.loaded("asr", None), [grant(ticket, "asr")]);
    assert_eq!(desk.gone(ticket), [unload("asr")]);
    assert_eq!(desk.unloaded("asr"), [load(&yielding("llm", 8))]);
    assert_eq!(desk.loaded("llm", None), [grant(again, "llm")]);
}

#[test]
fn nobody_is_asked_to_yield_to_his_like_or_when_idle_models_are_enough() {
    let mut desk = desk(10);
    desk.held(&yielding("llm", 4));
    desk.idle(&need("tts", 4, Live));
    assert_eq!(desk.ask(&need("asr", 6, Live)).1, [unload("tts")]);
    let mut desk = self::desk(10);
    desk.held(&yielding("llm", 8));
    assert_eq!(desk.ask(&need("image", 4, Batch)).1, []);
    assert_eq!(desk.ask(&need("vlm", 4, Interactive)).1, [Action::AskToYield(Ticket(0))]);
}

#[test]
fn batch_work_that_has_waited_long_goes_before_newer_interactive_work_and_is_sent_away_by_live_work_alone() {
    let mut desk = desk(10);
    let held = desk.held(&need("a", 6, Interactive));
    let (big, actions) = desk.ask(&yielding("big", 9));
    assert_eq!(actions, []);
    let (other, actions) = desk.ask(&need("b", 6, Interactive));
    assert_eq!(actions, []);
    let due = desk.plan.next_tick().unwrap();
    assert_eq!(due, Duration::from_secs(3) + RULES.patience, "it asked in the third second");
    desk.at = due;
    assert_eq!(desk.gone(held), [unload("a")]);
    assert_eq!(desk.unloaded("a"), [load(&yielding("big", 9))]);
    assert_eq!(desk.loaded("big", None), [grant(big, "big")], "and `b` goes on waiting");

    let live = need("asr", 4, Live);
    let (speaks, actions) = desk.ask(&live);
    assert_eq!(actions, [Action::AskToYield(big)]);
    assert_eq!(desk.gone(big), [unload("big")]);
    let (again, actions) = desk.ask(&yielding("big", 9));
    assert_eq!(actions, []);
    assert_eq!(desk.unloaded("big"), [load(&live), load(&need("b", 6, Interactive))], "it does not fit beside `asr`");
    assert_eq!(desk.loaded("asr", None), [grant(speaks, "asr")]);
    assert_eq!(desk.loaded("b", None), [grant(other, "b")]);
    let (late, actions) = desk.ask(&need("c", 9, Interactive));
    assert_eq!(actions, []);
    assert_eq!(desk.gone(other), []);
    assert_eq!(desk.gone(speaks), [unload("asr"), unload("b")]);
    assert_eq!(desk.unloaded("asr"), []);
    assert_eq!(desk.unloaded("b"), [load(&yielding("big", 9))], "it is as old as before");
    assert_eq!(desk.loaded("big", None), [grant(again, "big")]);
    assert_eq!(desk.gone(again), [unload("big")]);
    assert_eq!(desk.unloaded("big"), [load(&need("c", 9, Interactive))]);
    assert_eq!(desk.loaded("c", None), [grant(late, "c")]);
}

#[test]
fn an_age_from_before_yielding_counts_once_and_not_for_ever() {
    let mut desk = desk(10);
    for (pause, credited) in [(Duration::ZERO, true), (RULES.wait, false)] {
        let batch = desk.held(&yielding("llm", 8));
        let since = desk.at;
        let (live, actions) = desk.ask(&need("asr", 4, Live));
        assert_eq!(actions, [Action::AskToYield(batch)]);
        assert_eq!(desk.gone(batch), [unload("llm")]);
        desk.gone(live);
        desk.at += pause;
        let (again, _) = desk.ask(&yielding("llm", 8));
        assert_eq!(desk.plan.line[0].since == since - Duration::from_secs(u64::from(credited)), credited);
        assert!(desk.plan.yielded.is_empty());
        let (another, _) = desk.ask(&yielding("llm", 8));
        assert_eq!(desk.plan.line.iter().find(|it| it.ticket == another).unwrap().since, desk.at);
        [again, another].into_iter().for_each(|ticket| drop(desk.gone(ticket)));
        desk.unloaded("llm");
    }
}

#[test]
fn batch_work_that_waits_for_live_work_holds_up_nobody_however_old_it_is() {
    let mut desk = desk(10);
    desk.idle(&need("tts", 3, Interactive));
    let live = desk.held(&need("asr", 4, Live));
    let (big, actions) = desk.ask(&yielding("big", 10));
    assert_eq!(actions, []);
    desk.at += RULES.patience;
    assert_eq!(desk.step(Event::Tick), []);
    let (speaks, actions) = desk.ask(&need("tts", 3, Interactive));
    assert_eq!(actions, [grant(speaks, "tts")]);
    assert_eq!(desk.gone(live), []);
    let (waits, actions) = desk.ask(&need("tts", 3, Interactive));
    assert_eq!(actions, [], "now it waits for interactive work alone, which is younger");
    assert_eq!(desk.gone(speaks), [unload("asr"), unload("tts")]);
    desk.unloaded("asr");
    assert_eq!(desk.unloaded("tts"), [load(&yielding("big", 10))]);
    assert_eq!(desk.loaded("big", None), [grant(big, "big")]);
    assert_eq!(desk.gone(big), [unload("big")]);
    desk.unloaded("big");
    assert_eq!(desk.loaded("tts", None), [grant(waits, "tts")]);
}

#[test]
fn work_that_does_not_yield_is_waited_for() {
    let mut desk = desk(10);
    let held = desk.held(&need("vlm", 8, Interactive));
    let live = need("asr", 4, Live);
    assert_eq!(desk.ask(&live).1, []);
    assert_eq!(desk.gone(held), [unload("vlm")]);
    assert_eq!(desk.unloaded("vlm"), [load(&live)]);
}

#[test]
fn a_claimed_model_gets_no_new_lease_and_others_do() {
    let mut desk = desk(10);
    let old = desk.held(&need("a", 6, Batch));
    desk.idle(&need("b", 3, Live));
    let (_, actions) = desk.ask(&need("big", 7, Interactive));
    assert_eq!(actions, []);
    assert_eq!(desk.ask(&need("a", 6, Batch)).1, [], "it is to leave");
    let (live, actions) = desk.ask(&need("a", 6, Live));
    assert_eq!(actions, [grant(live, "a")], "the more urgent walk first");
    let (other, actions) = desk.ask(&need("b", 3, Batch));
    assert_eq!(actions, [grant(other, "b")], "it is in nobody's way");
    assert_eq!(desk.gone(old), []);
    assert_eq!(desk.gone(live), [unload("a")]);
}

#[test]
fn memory_that_somebody_ahead_counts_on_is_not_taken_by_a_small_one() {
    let mut desk = desk(10);
    let held = desk.held(&need("a", 6, Batch));
    desk.ask(&need("big", 9, Batch));
    assert_eq!(desk.ask(&need("small", 2, Batch)).1, [], "four are free, and big counts on three of them");
    assert_eq!(desk.ask(&need("tiny", 1, Batch)).1, [load(&need("tiny", 1, Batch))]);
    assert_eq!(desk.gone(held), [unload("a")]);
}

#[test]
fn who_leaves_the_line_is_not_served_and_frees_his_claims() {
    let mut desk = desk(10);
    desk.held(&need("a", 6, Batch));
    let (big, _) = desk.ask(&need("big", 9, Batch));
    let (small, actions) = desk.ask(&need("a", 6, Batch));
    assert_eq!(actions, []);
    assert_eq!(desk.gone(big), [grant(small, "a")]);
    assert_eq!(desk.gone(Ticket(99)), [], "nobody has this one");
}

#[test]
fn a_model_larger_than_expected_drives_out_what_is_idle_at_once() {
    let mut desk = desk(10);
    desk.idle(&need("a", 4, Live));
    let b = need("b", 5, Batch);
    let (ticket, actions) = desk.ask(&b);
    assert_eq!(actions, [load(&b)]);
    assert_eq!(desk.loaded("b", Some(7)), [unload("a"), grant(ticket, "b")]);
    assert_eq!(desk.ask(&need("c", 1, Live)).1, [], "nothing is reserved until all fits again");
    assert_eq!(desk.plan.reserved(), 11);
    let c = need("c", 1, Live);
    assert_eq!(desk.unloaded("a"), [load(&c)]);
}

#[test]
fn a_model_too_large_for_the_limit_leaves_and_is_refused_from_then_on() {
    let mut desk = desk(10);
    let (ticket, _) = desk.ask(&need("a", 8, Live));
    let actions = desk.loaded("a", Some(12));
    let numbers = Numbers { wanted: 12, limit: 10, reserved: 12, kept: 0 };
    assert_eq!(actions, [unload("a"), Action::Refuse(ticket, key("a"), Refusal::OverBudget(numbers))]);
    desk.unloaded("a");
    assert!(matches!(desk.ask(&need("a", 8, Live)).1[..], [Action::Refuse(_, _, Refusal::OverBudget(_))]));
}

#[test]
fn when_others_take_memory_idle_models_leave_then_batch_yields_then_the_rest_drains() {
    let mut desk = desk(10);
    desk.idle(&resident("idle", 2, Live));
    let batch = desk.held(&yielding("llm", 4));
    let live = desk.held(&need("asr", 4, Live));
    assert_eq!(desk.step(Event::Limit(9)), [unload("idle")]);
    assert_eq!(desk.unloaded("idle"), []);
    assert_eq!(desk.step(Event::Limit(7)), [Action::AskToYield(batch)]);
    let (small, actions) = desk.ask(&need("llm", 4, Batch));
    assert_eq!(actions, [], "it is to leave");
    assert_eq!(desk.gone(small), []);
    assert_eq!(desk.gone(batch), [unload("llm")]);
    assert_eq!(desk.unloaded("llm"), []);
    assert_eq!(desk.step(Event::Limit(3)), []);
    let (_, actions) = desk.ask(&need("asr", 4, Live));
    assert!(matches!(actions[..], [Action::Refuse(_, _, Refusal::OverBudget(_))]), "it drains: {actions:?}");
    assert_eq!(desk.gone(live), [unload("asr")]);
    desk.unloaded("asr");
    assert_eq!(desk.step(Event::Limit(10)), []);
    assert_eq!(desk.ask(&need("asr", 4, Live)).1, [load(&need("asr", 4, Live))]);
}

#[test]
fn draining_ends_when_the_memory_comes_back() {
    let mut desk = desk(10);
    desk.held(&need("asr", 8, Live));
    assert_eq!(desk.step(Event::Limit(7)), []);
    let (ticket, actions) = desk.ask(&need("asr", 7, Batch));
    assert_eq!(actions, []);
    assert_eq!(desk.step(Event::Limit(8)), [grant(ticket, "asr")]);
}

#[test]
fn a_failed_load_is_told_to_all_and_gives_its_memory_back() {
    let mut desk = desk(10);
    let (first, _) = desk.ask(&need("a", 8, Batch));
    let (second, _) = desk.ask(&need("a", 8, Live));
    let other = need("b", 8, Batch);
    desk.ask(&other);
    let refuse = |ticket| Action::Refuse(ticket, key("a"), Refusal::LoadFailed);
    assert_eq!(desk.failed("a", Failure::Other), [refuse(second), refuse(first), load(&other)]);
    assert_eq!(desk.plan.reserved(), 8);
}

#[test]
fn out_of_memory_clears_what_is_idle_and_tries_once_more() {
    let mut desk = desk(10);
    desk.idle(&need("x", 1, Live));
    desk.idle(&need("y", 1, Live));
    let a = need("a", 5, Batch);
    let (ticket, _) = desk.ask(&a);
    assert_eq!(desk.failed("a", Failure::OutOfMemory), [unload("x"), unload("y")]);
    assert_eq!(desk.unloaded("x"), []);
    assert_eq!(desk.unloaded("y"), [load(&a)]);
    let numbers = Numbers { wanted: 5, limit: 10, reserved: 5, kept: 0 };
    let refused = Action::Refuse(ticket, key("a"), Refusal::OutOfMemory(numbers));
    assert_eq!(desk.failed("a", Failure::OutOfMemory), [refused]);
    assert_eq!(desk.plan.reserved(), 0);
}

#[test]
fn out_of_memory_with_nothing_to_clear_is_refused() {
    let mut desk = desk(10);
    desk.idle(&resident("stays", 2, Live));
    desk.ask(&need("a", 5, Batch));
    let actions = desk.failed("a", Failure::OutOfMemory);
    assert!(matches!(actions[..], [Action::Refuse(_, _, Refusal::OutOfMemory(_))]), "{actions:?}");
}

#[test]
fn a_second_try_is_given_up_with_the_last_who_waited() {
    let mut desk = desk(10);
    desk.idle(&need("x", 1, Live));
    let (ticket, _) = desk.ask(&need("a", 5, Batch));
    desk.failed("a", Failure::OutOfMemory);
    assert_eq!(desk.gone(ticket), []);
    assert_eq!(desk.unloaded("x"), []);
    assert_eq!(desk.plan.reserved(), 0);
}

#[test]
fn a_second_try_makes_way_for_more_urgent_work() {
    let mut desk = desk(10);
    desk.idle(&need("x", 4, Live));
    desk.ask(&need("a", 5, Batch));
    assert_eq!(desk.failed("a", Failure::OutOfMemory), [unload("x")]);
    let live = need("live", 9, Live);
    assert_eq!(desk.ask(&live).1, []);
    assert_eq!(desk.unloaded("x"), [load(&live)], "the reservation of `a` has nothing behind it");
}

#[test]
fn a_dead_engine_counts_until_its_memory_is_back() {
    let mut desk = desk(10);
    let lease = desk.held(&need("a", 8, Live));
    assert_eq!(desk.step(Event::Died(key("a"))), [unload("a")]);
    assert_eq!(desk.plan.reserved(), 8);
    let (again, actions) = desk.ask(&need("a", 8, Live));
    assert_eq!(actions, []);
    assert_eq!(desk.step(Event::Died(key("a"))), []);
    assert_eq!(desk.unloaded("a"), [load(&need("a", 8, Live))]);
    assert_eq!(desk.loaded("a", None), [grant(again, "a")]);
    assert_eq!(desk.gone(lease), [], "the void lease takes nothing from the new one");
    assert_eq!(desk.plan.model(&key("a")).unwrap().leases.len(), 1);
    assert_eq!(desk.step(Event::Died(key("nobody"))), []);
}

#[test]
fn idle_models_retire_and_residents_stay() {
    let mut desk = desk(10);
    desk.idle(&need("a", 2, Live));
    desk.idle(&resident("b", 2, Batch));
    let due = desk.plan.next_tick().unwrap();
    assert_eq!(desk.plan.step(due - Duration::from_millis(1), Event::Tick), []);
    assert_eq!(desk.plan.step(due, Event::Tick), [unload("a")]);
    assert_eq!(desk.plan.next_tick(), None);
}

#[test]
fn every_wait_has_its_end_and_says_why() {
    let mut desk = desk(10);
    desk.held(&need("a", 8, Live));
    let (slow, _) = desk.ask(&need("loading", 2, Live));
    let (busy, _) = desk.ask(&need("b", 5, Live));
    let late = desk.at + RULES.wait;
    let numbers = Numbers { wanted: 5, limit: 10, reserved: 10, kept: 0 };
    assert_eq!(
        desk.plan.step(late, Event::Tick),
        [Action::Refuse(slow, key("loading"), Refusal::Slow), Action::Refuse(busy, key("b"), Refusal::Busy(numbers))]
    );
    assert_eq!(desk.plan.step(late, Event::Loaded(key("loading"), None)), []);
}

#[test]
fn models_are_taken_out_by_name_unless_they_are_in_use() {
    let mut desk = desk(10);
    assert_eq!(desk.plan.take_out("a"), Err(TakeOut::NotLoaded));
    let (lease, _) = desk.ask(&resident("a", 2, Live));
    assert_eq!(desk.plan.take_out("a"), Err(TakeOut::InUse), "it is loading");
    desk.loaded("a", None);
    assert_eq!(desk.plan.take_out("a"), Err(TakeOut::InUse));
    desk.gone(lease);
    assert_eq!(desk.plan.take_out("a"), Ok(vec![unload("a")]));
    assert_eq!(desk.plan.take_out("a"), Ok(vec![]), "it is leaving already");
}

#[test]
fn closing_refuses_everybody_and_lets_everything_go() {
    let mut desk = desk(10);
    desk.idle(&resident("a", 2, Live));
    let held = desk.held(&need("b", 2, Live));
    desk.ask(&need("c", 2, Live));
    let (waiting, _) = desk.ask(&need("d", 8, Live));
    let refuse = |ticket, model| Action::Refuse(ticket, key(model), Refusal::Closing);
    assert_eq!(desk.step(Event::Close), [refuse(Ticket(2), "c"), refuse(waiting, "d"), unload("a")]);
    let (late, actions) = desk.ask(&need("a", 2, Live));
    assert_eq!(actions, [refuse(late, "a")]);
    assert_eq!(desk.gone(held), [unload("b")]);
    assert_eq!(desk.loaded("c", None), [unload("c")]);
    for model in ["a", "b", "c"] {
        desk.unloaded(model);
    }
    assert_eq!(desk.plan.reserved(), 0);
}

#[test]
fn what_was_measured_counts_from_then_on() {
    let mut desk = desk(10);
    desk.idle(&need("a", 2, Live));
    desk.step(Event::Measured(key("a"), 4));
    desk.step(Event::Measured(key("a"), 3));
    assert_eq!(desk.plan.reserved(), 4, "the most that was seen");
    desk.step(Event::Measured(key("b"), 9));
    desk.plan.take_out("a").unwrap();
    desk.unloaded("a");
    desk.ask(&need("a", 2, Live));
    assert_eq!(desk.plan.reserved(), 4);
    desk.loaded("a", Some(1));
    assert_eq!(desk.plan.reserved(), 4);
    let known = Plan::new(RULES, 10, BTreeMap::from([(key("a"), Seen { loaded: None, most: 7 })]));
    assert_eq!(known.cost(&need("a", 2, Live)), 7);
}
