#[path = "../../tests/src/sandbox.rs"]
#[allow(dead_code)]
mod sandbox;

fn main() -> std::process::ExitCode {
    sandbox::run(Vec::new)
}
