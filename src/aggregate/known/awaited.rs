//! The servers that readiness waits for at the start.

use super::Known;
use crate::runtime::lifecycle::Readiness;

/// Servers that readiness names; more are awaited without a name.
const AWAITED_MAX: usize = 100;
/// Under which name readiness lists them.
const AWAITED: &str = "discovery";

impl Known {
    /// Makes every server that has not answered yet one that is awaited.
    pub(in crate::aggregate) fn await_all(&mut self, readiness: &Readiness) {
        let silent = self.asked.values_mut().filter(|asked| !asked.has_answered);
        for (count, asked) in silent.enumerate() {
            asked.is_awaited = true;
            if count < AWAITED_MAX {
                let name = format!("{AWAITED}/{}", asked.backend.spec().service);
                asked.awaited = Some(readiness.wait_once_for(name));
            }
        }
    }

    /// True while a server is awaited.
    pub(in crate::aggregate) fn awaits(&self) -> bool {
        self.asked.values().any(|asked| asked.is_awaited)
    }

    /// Awaits nobody any more; their number.
    pub(in crate::aggregate) fn give_up_awaiting(&mut self) -> usize {
        let awaited = self.asked.values_mut().filter(|asked| asked.is_awaited);
        awaited.map(|asked| (asked.is_awaited, asked.awaited) = (false, None)).count()
    }
}
