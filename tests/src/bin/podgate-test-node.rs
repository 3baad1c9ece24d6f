//! The first process of a test node, and its parent: see `podgate_tests::runtime::holder`.

fn main() -> anyhow::Result<()> {
    Ok(())
}
