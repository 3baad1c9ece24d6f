//! The walls of a test node: see `podgate_tests::runtime::holder`.

fn main() -> anyhow::Result<()> {
    podgate_tests::runtime::holder::main()
}
