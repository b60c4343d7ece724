//! What is being done, and what is worth knowing about it, told on standard error.

use std::io::IsTerminal;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sistemo::{Notice, Reporter};

use super::tell;

/// What takes less than this is not worth a bar.
const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(120);

/// Tells about stages: a bar on a terminal, for those that take longer than about a second; a
/// line each elsewhere.
pub(crate) struct Progress {
    on_terminal: bool,
    stage: Mutex<Option<Stage>>,
}

struct Stage {
    bar: ProgressBar,
    /// Dropped to call off the appearance of the bar.
    ended: Sender<()>,
    appearance: JoinHandle<()>,
}

impl Stage {
    fn begin(text: &str) -> Stage {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
            .with_style(style("{spinner} {msg} ({elapsed})"))
            .with_message(text.to_owned());
        let (ended, over) = mpsc::channel();
        let later = bar.clone();
        let appearance = thread::spawn(move || {
            if over.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                later.set_draw_target(ProgressDrawTarget::stderr());
                later.enable_steady_tick(TICK);
            }
        });
        Stage {
            bar,
            ended,
            appearance,
        }
    }

    fn end(self) {
        drop(self.ended);
        // Waited for, so that the bar cannot appear after it was cleared. It does not panic.
        let _ = self.appearance.join();
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

impl Progress {
    /// Tells about stages on standard error.
    pub(crate) fn new() -> Progress {
        Progress {
            on_terminal: std::io::stderr().is_terminal(),
            stage: Mutex::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Stage>> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reporter for Progress {
    fn stage(&self, text: &str) {
        self.stage_over();
        if self.on_terminal {
            *self.lock() = Some(Stage::begin(text));
        } else {
            tell(text);
        }
    }

    fn progress(&self, done: u64, total: u64) {
        if let Some(stage) = &*self.lock() {
            if total > 0 && stage.bar.length() != Some(total) {
                stage.bar.set_length(total);
                let template =
                    "{spinner} {msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} ({eta})";
                stage.bar.set_style(style(template).progress_chars("=> "));
            }
            stage.bar.set_position(done);
        }
    }

    fn stage_over(&self) {
        let over = self.lock().take();
        if let Some(stage) = over {
            stage.end();
        }
    }

    fn notice(&self, notice: &Notice) {
        let text = format!("Note: {notice}");
        match &*self.lock() {
            Some(stage) => stage.bar.suspend(|| tell(&text)),
            None => tell(&text),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stage_over();
    }
}
