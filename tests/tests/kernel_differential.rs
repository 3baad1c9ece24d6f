//! To come.

fn main() -> std::process::ExitCode {
    podgate_tests::sandbox::run(Vec::new)
}
