//! A row per statement kind; the properties of shapes; bad input.

mod corpus;
mod hostile;
mod kinds;
mod manual;
mod nested;
mod rows;
mod shapes;
