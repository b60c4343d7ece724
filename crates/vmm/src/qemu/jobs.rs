//! QEMU's jobs: what it does on the side, from one command on until it is done.

use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use super::control::{COMMAND_LIMIT, QemuControl};
use crate::VmmError;

/// How often a job is looked at that is over within milliseconds.
const PAUSE: Duration = Duration::from_millis(2);

/// `JobInfo` of QEMU's qapi/job.json.
#[derive(Deserialize)]
pub(super) struct Job {
    pub(super) id: String,
    pub(super) status: String,
    #[serde(rename = "current-progress")]
    pub(super) done: u64,
    #[serde(rename = "total-progress")]
    pub(super) total: u64,
    /// Why it failed, once it has ended.
    pub(super) error: Option<String>,
}

impl Job {
    /// Whether it has ended, and waits for somebody to look how.
    pub(super) fn is_over(&self) -> bool {
        self.status == "concluded"
    }
}

impl QemuControl {
    pub(super) fn jobs(&mut self) -> Result<Vec<Job>, VmmError> {
        self.ask("query-jobs", None)
    }

    pub(super) fn job(&mut self, id: &str) -> Result<Option<Job>, VmmError> {
        Ok(self.jobs()?.into_iter().find(|job| job.id == id))
    }

    /// What QEMU has said on this connection of the end of a job that it has forgotten since; no
    /// error where it has said nothing.
    pub(super) fn job_outcome(&mut self, command: &'static str, id: &str) -> Result<(), VmmError> {
        let mut outcome = Ok(());
        for event in self.take_events("BLOCK_JOB_COMPLETED") {
            if let (Some(job), Some(error)) =
                (event.data["device"].as_str(), event.data["error"].as_str())
                && job == id
            {
                outcome = Err(refused(command, error.to_owned()));
            }
        }
        outcome
    }

    /// Waits for the end of a job that QEMU keeps until it is asked how it ended.
    pub(super) fn finish_job(&mut self, command: &'static str, id: &str) -> Result<(), VmmError> {
        let deadline = Instant::now() + COMMAND_LIMIT;
        while let Some(job) = self.job(id)? {
            if job.is_over() {
                self.order("job-dismiss", &json!({ "id": id }))?;
                return job
                    .error
                    .map_or(Ok(()), |error| Err(refused(command, error)));
            }
            if Instant::now() >= deadline {
                return Err(refused(command, format!("it is still {}", job.status)));
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Ends those of some jobs that there are, whatever they do; QEMU then knows them no more.
    pub(super) fn end_jobs(&mut self, ids: &[String]) -> Result<(), VmmError> {
        let deadline = Instant::now() + COMMAND_LIMIT;
        loop {
            let mut left = self.jobs()?;
            left.retain(|job| ids.contains(&job.id));
            let Some(one) = left.first() else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                let message = format!("{} is still {}", one.id, one.status);
                return Err(refused("job-cancel", message));
            }
            for job in &left {
                let command = if job.is_over() {
                    "job-dismiss"
                } else {
                    "job-cancel"
                };
                match self.order(command, &json!({ "id": job.id })) {
                    // It goes on to another state at this very instant, or is told already.
                    Ok(()) | Err(VmmError::Refused { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            thread::sleep(PAUSE);
        }
    }
}

/// A job that did not do what it was started for.
pub(super) fn refused(command: &'static str, message: String) -> VmmError {
    VmmError::Refused { command, message }
}
