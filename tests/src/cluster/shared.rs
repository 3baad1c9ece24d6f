//! One cluster for all tests of a file: they run one after the other, and the cluster ends after the last.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};

type Run<T> = Box<dyn Fn(&mut T) -> Result<()> + Send>;

/// A test of something that is shared.
pub struct Test<T> {
    name: String,
    run: Run<T>,
}

impl<T> Test<T> {
    /// A test.
    pub fn new(
        name: impl Into<String>,
        run: impl Fn(&mut T) -> Result<()> + Send + 'static,
    ) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// A whole test program: starts what is shared, runs the tests, ends it.
pub fn main<T: Send + 'static>(
    start: impl FnOnce() -> Result<T>,
    tests: Vec<Test<T>>,
    finish: impl FnOnce(T) -> Result<()>,
) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    // to tell the names no cluster is needed
    let shared = if arguments.list { None } else { Some(start()) };
    let shared = match shared.transpose() {
        Ok(shared) => Arc::new(Mutex::new(shared)),
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let trials = tests.into_iter().map(|test| {
        let shared = shared.clone();
        Trial::test(test.name, move || {
            // a panic in another test is reported there
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            let shared = shared.as_mut().ok_or("nothing was started")?;
            (test.run)(shared).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    let ended = shared.lock().unwrap_or_else(PoisonError::into_inner).take().map(finish);
    if let Some(Err(error)) = ended.map(|ended| ended.context("end what the tests shared")) {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
