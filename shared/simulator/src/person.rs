//! What people want of a roll: answers, pauses, an abort.

use jiff::SignedDuration;
use kopsline_rolling::{About, Answer, Choice, Control, Question, RollState};

use crate::monitor::Monitor;
use crate::random::Random;
use crate::world::{Moment, World};

/// What people will want, and when. Times count from the roll's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wishes {
    /// The roll is restricted to a preview of how things were before it.
    pub approves: bool,
    /// How long the approval takes.
    pub approval_takes: SignedDuration,
    /// Whoever is asked whether to go on says yes, and leaves a stuck drain to its deadline. Else answers are by chance.
    pub agrees: bool,
    /// How long an answer to a question takes.
    pub answer_takes: SignedDuration,
    /// From when, and for how long, the roll is paused.
    pub paused: Option<(SignedDuration, SignedDuration)>,
    /// From when, and for how long, the change window is closed.
    pub closed: Option<(SignedDuration, SignedDuration)>,
    /// When the roll is aborted.
    pub aborts: Option<SignedDuration>,
}

/// Somebody who answers.
#[derive(Debug)]
pub(crate) struct Person {
    wishes: Wishes,
    began: Moment,
    seed: u64,
    answers: Vec<Answer>,
}

impl Person {
    pub(crate) fn new(world: &World, wishes: &Wishes) -> Self {
        Self { wishes: *wishes, began: world.now(), seed: world.seed(), answers: Vec::new() }
    }

    /// What is wanted now.
    pub(crate) fn control(&mut self, now: Moment, state: Option<&RollState>, monitor: &mut Monitor) -> Control {
        for question in state.into_iter().flat_map(|state| &state.questions) {
            let asked = Moment::at(question.asked);
            let due = now.since(asked) >= self.wishes.answer_takes;
            let silent = self.wishes.agrees && matches!(question.about, About::StuckDrain { .. });
            if due && !silent && !self.answers.iter().any(|answer| answer.question == question.id) {
                let choice = self.choice(question);
                monitor.answered(question, choice);
                self.answers.push(Answer { question: question.id.clone(), choice, by: "somebody".to_owned() });
            }
        }
        let within = |span: Option<(SignedDuration, SignedDuration)>| {
            let (from, length) = span?;
            let (from, until) = (self.began.after(from), self.began.after(from).after(length));
            (from <= now && now < until).then_some(until)
        };
        Control {
            paused: within(self.wishes.paused).is_some(),
            closed_until: within(self.wishes.closed).map(Moment::timestamp),
            aborted: self.wishes.aborts.filter(|after| now >= self.began.after(*after)).map(|_| "somebody: enough".to_owned()),
            answers: self.answers.clone(),
        }
    }

    /// Always the same answer to the same question; the longer it takes to ask again, the less patient.
    fn choice(&self, question: &Question) -> Choice {
        if self.wishes.agrees {
            return Choice::Continue;
        }
        let number = question.id.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let choices = question.choices();
        *Random::of(self.seed, number).pick(choices).unwrap_or(&Choice::Continue)
    }
}
