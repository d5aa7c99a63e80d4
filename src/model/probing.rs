//! What is asked of a backend to see whether its APIServices are available, and what its answers say.
//!
//! Upstream asks five times at once for each APIService, every 30 s (`status/remote:sync`). Here what
//! callers are answered counts first; then each endpoint is asked once, for one version after the
//! other, and only where something is wrong for more.

use std::sync::Arc;

use super::fault::{Fault, Hop, ServicePort};

/// What is known of one APIService by asking its backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probed {
    /// It is not asked: requests reach it through kube-apiserver.
    Unasked,
    /// It was not asked yet.
    Awaited,
    /// It answered well.
    Passed,
    /// It did not.
    Failed(Failure),
}

/// How a probe failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It was answered with this status, which is none of the 2xx.
    Status(u16),
    /// It was not answered.
    Fault(Fault),
}

impl Probed {
    /// Whether it tells the same as `other`, whatever the private details.
    pub fn says_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Failed(Failure::Fault(one)), Self::Failed(Failure::Fault(other))) => {
                one.hop == other.hop
            }
            _ => self == other,
        }
    }
}

impl Failure {
    /// Whether the endpoint cannot be reached, for whatever is asked. Faults of one answer are those of
    /// what was asked for.
    fn is_of_endpoint(&self) -> bool {
        match self {
            Self::Status(_) => false,
            Self::Fault(fault) => !matches!(
                fault.hop,
                Hop::Deadline | Hop::BackendReset | Hop::ProtocolError | Hop::Overloaded
            ),
        }
    }

    /// Whether portico's own limits kept it from asking, which says nothing.
    fn is_own(&self) -> bool {
        matches!(self, Self::Fault(Fault { hop: Hop::Overloaded, .. }))
    }

    /// The text of the condition, in upstream's words; without addresses and times, so that it changes
    /// only when what is wrong changes. `path` is what was asked for.
    pub fn message(&self, service: &ServicePort, path: &str) -> String {
        let url = format!("https://{}:{}{path}", service.server_name(), service.port);
        match self {
            Self::Status(code) => {
                format!("failing or missing response from {url}: bad status from {url}: {code}")
            }
            Self::Fault(fault) => {
                let why = fault.hop.sentence(service);
                format!("failing or missing response from {url}: Get \"{url}\": {why}")
            }
        }
    }

    /// What callers are answered with meanwhile. That a probe had no answer in time says nothing of
    /// theirs, which is not sent.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Status(401) => Hop::ProbeUnauthorized.into(),
            Self::Status(403) => Hop::ProbeForbidden.into(),
            Self::Status(code) => Hop::ProbeRefused(*code).into(),
            Self::Fault(Fault { hop: Hop::Deadline | Hop::Unresponsive, detail }) => {
                Fault::new(Hop::ProbeTimeout, Arc::clone(detail))
            }
            Self::Fault(fault) => fault.clone(),
        }
    }
}

/// What a round begins with about one version of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// It was never asked for, or failed.
    pub is_open: bool,
    /// Callers were answered well since the last round.
    pub is_evident: bool,
}

/// One question: endpoint and version by their places.
pub type Question = (usize, usize);

/// The first questions of a round: each silent endpoint is asked once, the open versions first, then
/// one after the other as rounds (`turn`) go by. Where no endpoint is silent one is asked all the same
/// while there is a version without evidence.
pub fn first_questions(versions: &[Wanted], silent: &[bool], turn: usize) -> Vec<Question> {
    if versions.is_empty() || silent.is_empty() {
        return Vec::new();
    }
    let rotated = |is: &dyn Fn(&Wanted) -> bool| -> Vec<usize> {
        let all = (0..versions.len()).map(|at| (at + turn) % versions.len());
        all.filter(|at| versions.get(*at).is_some_and(is)).collect()
    };
    let mut order = rotated(&|wanted| wanted.is_open && !wanted.is_evident);
    order.extend(rotated(&|wanted| !wanted.is_open && !wanted.is_evident));
    let mut endpoints: Vec<usize> =
        silent.iter().enumerate().filter(|(_, silent)| **silent).map(|(at, _)| at).collect();
    if endpoints.is_empty() && !order.is_empty() {
        endpoints.push(turn % silent.len());
    }
    if order.is_empty() {
        order = rotated(&|_| true);
    }
    endpoints.into_iter().zip(order.into_iter().cycle()).collect()
}

/// What a round has found so far.
#[derive(Clone, Debug)]
pub struct Round {
    versions: Vec<Wanted>,
    endpoints: usize,
    answers: Vec<(Question, Result<(), Failure>)>,
}

impl Round {
    /// A round over so many endpoints, at which nothing was asked yet.
    pub fn new(versions: Vec<Wanted>, endpoints: usize) -> Self {
        Self { versions, endpoints, answers: Vec::new() }
    }

    /// Takes in an answer.
    pub fn answered(&mut self, question: Question, answer: Result<(), Failure>) {
        self.answers.push((question, answer));
    }

    /// Questions to be asked next, one a version: of those that are open, or that one endpoint does not
    /// serve, at the next endpoint; of all when one does not answer well, for they may have the same.
    pub fn next_questions(&self) -> Vec<Question> {
        let suspicious = self.answers.iter().any(|(_, answer)| answer.is_err());
        let due = self.versions.iter().enumerate().filter(|(at, wanted)| {
            !wanted.is_evident && (wanted.is_open || suspicious) && !self.is_served(*at)
        });
        due.filter_map(|(version, _)| Some((self.next_endpoint(version)?, version))).collect()
    }

    fn is_served(&self, version: usize) -> bool {
        self.of(version).any(|(_, answer)| answer.is_ok())
    }

    fn of(&self, version: usize) -> impl Iterator<Item = (usize, &Result<(), Failure>)> {
        let its = self.answers.iter().filter(move |((_, of), _)| *of == version);
        its.map(|((endpoint, _), answer)| (*endpoint, answer))
    }

    fn next_endpoint(&self, version: usize) -> Option<usize> {
        (0..self.endpoints).find(|endpoint| {
            !self.is_down(*endpoint) && !self.of(version).any(|(asked, _)| asked == *endpoint)
        })
    }

    fn is_down(&self, endpoint: usize) -> bool {
        self.fault_of(endpoint).is_some()
    }

    fn fault_of(&self, endpoint: usize) -> Option<&Failure> {
        self.answers.iter().find_map(|((at, _), answer)| match answer {
            Err(failure) if *at == endpoint && failure.is_of_endpoint() => Some(failure),
            _ => None,
        })
    }

    /// What is known of each version now; none where that is what it was before.
    pub fn verdicts(&self) -> Vec<Option<Probed>> {
        let mut faults = (0..self.endpoints).map(|endpoint| self.fault_of(endpoint));
        let first = faults.next().flatten();
        let all_down = first.filter(|_| faults.all(|fault| fault.is_some()));
        let verdict = |(at, wanted): (usize, &Wanted)| {
            if self.is_served(at) {
                return Some(Probed::Passed);
            }
            if let Some(failure) = all_down {
                return Some(Probed::Failed(failure.clone()));
            }
            if wanted.is_evident {
                return Some(Probed::Passed);
            }
            // What one endpoint says of it does not count while another was not asked.
            if self.next_endpoint(at).is_some() {
                return None;
            }
            let failures = self.of(at).filter_map(|(_, answer)| answer.as_ref().err());
            let failures = failures.filter(|failure| !failure.is_own());
            // Endpoints are asked in no order: the same is told each time.
            let told = failures.min_by_key(|failure| match failure {
                Failure::Status(code) => (0, *code),
                Failure::Fault(_) => (1, 0),
            });
            told.map(|failure| Probed::Failed(failure.clone()))
        };
        self.versions.iter().enumerate().map(verdict).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Wanted = Wanted { is_open: true, is_evident: false };
    const WELL: Wanted = Wanted { is_open: false, is_evident: false };
    const USED: Wanted = Wanted { is_open: false, is_evident: true };

    fn fault(hop: Hop) -> Failure {
        Failure::Fault(hop.into())
    }

    #[test]
    fn each_silent_endpoint_is_asked_once_for_one_version_after_the_other() {
        type Case<'a> = (&'a [Wanted], &'a [bool], usize, &'a [Question]);
        let cases: [Case<'_>; 9] = [
            (&[WELL], &[true], 0, &[(0, 0)]),
            (&[WELL, WELL], &[true, true, true], 0, &[(0, 0), (1, 1), (2, 0)]),
            (&[WELL, WELL], &[true], 1, &[(0, 1)]),
            // What is not known yet comes first.
            (&[WELL, NEW], &[true], 0, &[(0, 1)]),
            // Endpoints that were heard of are not asked while callers are served.
            (&[USED], &[false, true], 0, &[(1, 0)]),
            (&[USED, USED], &[false], 0, &[]),
            (&[USED, WELL], &[false, false], 3, &[(1, 1)]),
            (&[WELL], &[], 0, &[]),
            (&[], &[true], 0, &[]),
        ];
        for (versions, silent, turn, expected) in cases {
            let found = first_questions(versions, silent, turn);
            assert_eq!(found, expected, "{versions:?} {silent:?} {turn}");
        }
    }

    /// Plays a round against endpoints that answer as `answer` says.
    fn play(
        versions: &[Wanted],
        endpoints: usize,
        answer: impl Fn(Question) -> Result<(), Failure>,
    ) -> (usize, Vec<Option<Probed>>) {
        let mut round = Round::new(versions.to_vec(), endpoints);
        let mut questions = first_questions(versions, &vec![true; endpoints], 0);
        let mut asked = 0;
        while !questions.is_empty() {
            for question in std::mem::take(&mut questions) {
                asked += 1;
                round.answered(question, answer(question));
            }
            questions = round.next_questions();
        }
        (asked, round.verdicts())
    }

    #[test]
    fn a_version_fails_when_no_endpoint_answers_it_well() {
        let down = || fault(Hop::ConnectRefused);
        let passed = Some(Probed::Passed);
        let failed = |failure| Some(Probed::Failed(failure));
        // Everything is well: as many questions as endpoints.
        assert_eq!(play(&[WELL], 3, |_| Ok(())), (3, vec![passed.clone()]));
        // New versions are all asked for.
        assert_eq!(play(&[NEW, NEW, NEW], 1, |_| Ok(())).0, 3);
        assert_eq!(play(&[WELL, WELL], 1, |_| Ok(())), (1, vec![passed.clone(), None]));
        // One endpoint of two is down, and so is half of what serves.
        let half = |(endpoint, _)| if endpoint == 0 { Err(down()) } else { Ok(()) };
        assert_eq!(play(&[WELL], 2, half).1, vec![passed.clone()]);
        // All are: nothing else is asked, and what callers were answered is over.
        let all = play(&[USED, NEW], 2, |_| Err(down()));
        assert_eq!(all, (2, vec![failed(down()), failed(down())]));
        // One endpoint does not serve the version, the other does.
        let rollout =
            |(endpoint, _)| if endpoint == 0 { Err(Failure::Status(404)) } else { Ok(()) };
        assert_eq!(play(&[WELL], 2, rollout).1, vec![passed.clone()]);
        // None does; the other version is looked at as well.
        let gone = |(_, version)| if version == 0 { Err(Failure::Status(503)) } else { Ok(()) };
        let found = play(&[WELL, WELL], 1, gone);
        assert_eq!(found, (2, vec![failed(Failure::Status(503)), passed]));
        // One version that hangs is no matter of the other's, whichever is asked first.
        let hangs = |(_, version)| if version == 0 { Err(fault(Hop::Deadline)) } else { Ok(()) };
        let both = vec![failed(fault(Hop::Deadline)), Some(Probed::Passed)];
        assert_eq!(play(&[WELL, WELL], 1, hangs).1, both);
        assert_eq!(play(&[NEW, NEW], 2, hangs).1, both);
        // All endpoints that hang are found out, though only one was to be asked.
        let mut round = Round::new(vec![WELL], 2);
        round.answered((0, 0), Err(fault(Hop::Deadline)));
        assert_eq!((round.next_questions(), round.verdicts()), (vec![(1, 0)], vec![None]));
        // Portico's own limits say nothing.
        assert_eq!(play(&[NEW], 2, |_| Err(fault(Hop::Overloaded))).1, vec![None]);
        // A refusal says more than a fault.
        let mixed = |(endpoint, _)| Err(if endpoint == 0 { down() } else { Failure::Status(401) });
        assert_eq!(play(&[NEW], 2, mixed).1, [failed(Failure::Status(401))]);
    }

    #[test]
    fn conditions_have_upstreams_words_and_callers_a_named_cause() {
        let service = ServicePort { namespace: "ns".into(), name: "svc".into(), port: 443 };
        let url = "https://svc.ns.svc:443/apis/g/v1";
        let cases = [
            (Failure::Status(503), "bad status from", "503", Hop::ProbeRefused(503)),
            (Failure::Status(401), "bad status from", "401", Hop::ProbeUnauthorized),
            (Failure::Status(403), "bad status from", "403", Hop::ProbeForbidden),
            (fault(Hop::ConnectRefused), "Get", "connection refused", Hop::ConnectRefused),
            (fault(Hop::Deadline), "Get", "within the deadline", Hop::ProbeTimeout),
            (fault(Hop::Unresponsive), "Get", "nor a ping", Hop::ProbeTimeout),
        ];
        for (failure, how, end, hop) in cases {
            let message = failure.message(&service, "/apis/g/v1");
            let start = format!("failing or missing response from {url}: {how} ");
            assert!(message.starts_with(&start) && message.ends_with(end), "{message}");
            assert_eq!(failure.fault().hop, hop);
        }
    }

    #[test]
    fn what_only_differs_in_its_details_says_the_same() {
        let failed = |detail: &str| {
            Probed::Failed(Failure::Fault(Fault::new(Hop::ConnectRefused, detail.to_owned())))
        };
        assert!(failed("a").says_the_same(&failed("b")));
        assert!(!failed("a").says_the_same(&Probed::Failed(fault(Hop::ConnectTimeout))));
        assert!(Probed::Passed.says_the_same(&Probed::Passed));
        assert!(!Probed::Passed.says_the_same(&Probed::Awaited));
    }
}
