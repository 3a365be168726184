//! The monitor's role with the rights that README.md asks for: these and no others, so that tests show that they suffice.
//!
//! Absent on purpose: a second list of them.

const README: &str = include_str!("../../README.md");

/// The statements of README.md for a role of this name.
pub fn monitor_role(name: &str, password: &str) -> String {
    let (_, section) = README.split_once("## Rights on the nodes").expect("README.md names the rights");
    let (_, block) = section.split_once("```sql\n").expect("as SQL");
    let (sql, _) = block.split_once("```").expect("in a block");
    assert!(sql.starts_with("CREATE ROLE pgregent LOGIN") && sql.contains("PASSWORD '…'"), "{sql}");
    sql.replace("'…'", &format!("'{password}'")).replace("pgregent", name)
}
