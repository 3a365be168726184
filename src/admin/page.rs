//! The status page: one HTML text without script or foreign asset, which reloads itself.
//!
//! Invariants: every text that is not a constant goes through [`Escaped`].
//! Absent on purpose: JavaScript (the policy header forbids it), history, and anything to click that acts.

use super::http::ENDPOINTS;
use super::report::{ClusterReport, NodeReport};
use serde_json::Value;
use std::fmt::{self, Display, Write};

/// The page reloads itself after this many seconds.
const RELOAD_SECONDS: u32 = 2;

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}\
table{border-collapse:collapse;width:100%}\
th,td{text-align:left;padding:.3rem .7rem;border-bottom:1px solid #8884}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
pre{overflow:auto;padding:.7rem;background:#8881}\
.good{color:#1a7f37}.warn{color:#b35900}.bad{color:#cf222e}\
@media(prefers-color-scheme:dark){.good{color:#3fb950}.warn{color:#e3a008}.bad{color:#ff7b72}}";

/// A text made harmless in HTML content and in quoted attributes.
struct Escaped<T>(T);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Filter<'a, 'b>(&'a mut fmt::Formatter<'b>);
        impl Write for Filter<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                for c in text.chars() {
                    match c {
                        '&' => self.0.write_str("&amp;")?,
                        '<' => self.0.write_str("&lt;")?,
                        '>' => self.0.write_str("&gt;")?,
                        '"' => self.0.write_str("&quot;")?,
                        '\'' => self.0.write_str("&#39;")?,
                        c => self.0.write_char(c)?,
                    }
                }
                Ok(())
            }
        }
        write!(Filter(f), "{}", self.0)
    }
}

/// The whole page.
pub(super) fn render(report: &ClusterReport, pools: &Value) -> String {
    let mut page = String::new();
    // Writing to a String cannot fail.
    let _ = write_page(&mut page, report, pools);
    page
}

fn write_page(page: &mut String, report: &ClusterReport, pools: &Value) -> fmt::Result {
    let cluster = Escaped(&report.cluster);
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta http-equiv=\"refresh\" content=\"{RELOAD_SECONDS}\">\
         <title>{cluster} · pgregent</title><style>{STYLE}</style></head><body>\n<h1>{cluster}</h1>\n"
    )?;
    write_summary(page, report)?;
    write_nodes(page, &report.nodes)?;
    write_json(page, "Control", &report.control)?;
    write_json(page, "Pools", pools)?;
    page.write_str("<h2>More</h2>\n<ul>\n")?;
    for (path, tells) in ENDPOINTS.iter().filter(|(path, _)| *path != "/") {
        writeln!(page, "<li><a href=\"{path}\">{path}</a> {}</li>", Escaped(tells))?;
    }
    writeln!(page, "</ul>\n<p>pgregent {}</p>\n</body></html>", report.version)
}

fn write_summary(page: &mut String, report: &ClusterReport) -> fmt::Result {
    let writes = match report.writes {
        "open" => "good",
        "held" => "warn",
        _ => "bad",
    };
    write!(
        page,
        "<p>Primary <b>{}</b>, epoch {}, writes <b class=\"{writes}\">{}</b>",
        Escaped(report.primary.as_deref().unwrap_or("none")),
        report.epoch,
        report.writes,
    )?;
    if let Some(why) = &report.why {
        write!(page, " ({})", Escaped(why))?;
    }
    writeln!(page, ", this proxy is {}.</p>", report.phase)
}

fn write_nodes(page: &mut String, nodes: &[NodeReport]) -> fmt::Result {
    page.write_str(
        "<table><thead><tr><th>Node</th><th>Address</th><th>Role</th><th>Health</th><th>Reads</th>\
         <th class=\"n\">Lag, bytes</th><th class=\"n\">Replay lag, ms</th><th class=\"n\">Fresh, ms ago</th>\
         <th>Timeline, LSN</th><th>Note</th></tr></thead><tbody>\n",
    )?;
    for node in nodes {
        let health = match node.health {
            "healthy" => "good",
            "suspect" => "warn",
            "down" => "bad",
            _ => "",
        };
        writeln!(
            page,
            "<tr><td><b>{}</b></td><td>{}</td><td>{}</td><td class=\"{health}\">{}</td><td>{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{} {}</td><td>{}</td></tr>",
            Escaped(&node.name),
            Escaped(&node.address),
            node.role,
            node.health,
            reads(node),
            known(node.lag_bytes),
            known(node.replay_lag_ms),
            known(node.fresh_age_ms),
            known(node.timeline),
            Escaped(known(node.lsn.as_deref())),
            Escaped(node.note.as_deref().unwrap_or("")),
        )?;
    }
    page.write_str("</tbody></table>\n")
}

/// Whether it takes reads, and if it could but does not, why.
fn reads(node: &NodeReport) -> &'static str {
    match node.ejected {
        _ if node.service != "enabled" => node.service,
        _ if !node.accepts_reads => "no",
        Some("slow") => "ejected (slow)",
        Some(_) => "ejected (failing)",
        None => "yes",
    }
}

fn write_json(page: &mut String, title: &str, value: &Value) -> fmt::Result {
    if value.is_null() {
        return Ok(());
    }
    writeln!(page, "<h2>{title}</h2>\n<pre>{}</pre>", Escaped(format_args!("{value:#}")))
}

/// The value, or a dash where it is not known.
fn known(value: Option<impl Display>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_html_reads_survives() {
        let text = r#"<b a="1" c='2'>&amp;"#;
        assert_eq!(Escaped(text).to_string(), "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;amp;");
    }
}
