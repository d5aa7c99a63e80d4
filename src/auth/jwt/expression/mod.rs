//! CEL expressions of an `AuthenticationConfiguration`, over `claims` or `user`.
//!
//! The library checks no types and counts no cost, so most of what upstream refuses at load is refused
//! here when it is evaluated, and both its work and the size of what it makes are bounded; it is never
//! taken for true. Where it is more lenient than cel-go the tree is rewritten before it is used: a
//! field of what has no fields is an error and not `false`, and a missing field behind `.?` is none.

mod types;

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use kube_cel::KubeCelExt as _;
use kube_cel::cel::common::ast::{
    CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators,
};
use kube_cel::cel::objects::{Key, Map, Value};
use kube_cel::cel::parser::Parser;
use kube_cel::cel::{Context, ExecutionError, ResolveResult};

use crate::model::error_text::shortened;

/// Bytes of an expression.
pub(super) const LENGTH_MAX: usize = 10 * 1024;
/// Levels of an expression's tree.
const DEPTH_MAX: usize = 64;
/// Steps of all loops of one evaluation.
const STEPS_MAX: u32 = 100_000;
/// How long one evaluation may take; looked at in every step of a loop.
const TIME_MAX: Duration = Duration::from_millis(100);
/// Values in what a part of an expression makes, each byte of a text counted as one.
const SIZE_MAX: usize = 256 << 10;
/// Characters of an error: it holds the values that it is about, which may be large and are the
/// caller's own.
const ERROR_CHARACTERS_MAX: usize = 200;
/// Bytes of stack for parsing, which descends deeper than any tree that is accepted.
const PARSER_STACK: usize = 64 << 20;

/// Reads a field, see [`rewrite`].
const HAS_FIELD: &str = "@has_field";
const STEP: &str = "@step";
const BOUNDED: &str = "@bounded";

/// The functions that expressions may call.
static FUNCTIONS: LazyLock<Context<'static>> = LazyLock::new(|| {
    let mut context = Context::default().with_all();
    context.add_function(HAS_FIELD, has_field);
    context.add_function(STEP, step);
    context.add_function(BOUNDED, bounded);
    context.add_function("dyn", |value: Value| -> ResolveResult { Ok(value) });
    context
});

thread_local! {
    /// What is left to the evaluation under way on this thread.
    static LEFT: Cell<(u32, Option<Instant>)> = const { Cell::new((0, None)) };
}

/// A parsed expression.
#[derive(Debug)]
pub(super) struct Expression {
    pub(super) source: String,
    tree: IdedExpr,
    /// The fields that it selects of its variable.
    pub(super) fields: BTreeSet<String>,
    /// True when it can be known without a value that it gives no boolean.
    pub(super) is_never_bool: bool,
}

/// The variable that expressions are evaluated over.
pub(super) struct Scope<'a>(Context<'a>);

impl Scope<'_> {
    /// With `value` as `variable`. Every number is a double, as in upstream's reading of JSON.
    pub(super) fn new(variable: &str, value: &serde_json::Value) -> Self {
        let mut context = FUNCTIONS.new_inner_scope();
        context.add_variable_from_value(variable, from_json(value));
        Self(context)
    }
}

impl Expression {
    /// Parses `source`, which may use `variable` and no other; an error says what is wrong.
    pub(super) fn parse(source: &str, variable: &'static str) -> Result<Self, String> {
        if source.len() > LENGTH_MAX {
            return Err(format!(
                "the expression has {} bytes, at most {LENGTH_MAX} are allowed",
                source.len()
            ));
        }
        check_nesting(source)?;
        let text = source.to_owned();
        let parse = move || {
            let parsed = Parser::default().enable_optional_syntax(true).parse(&text);
            let mut tree = parsed.map_err(|errors| format!("compilation failed: {errors}"))?;
            check_depth(&tree, DEPTH_MAX)?;
            let mut names = Names { variable, bound: Vec::new(), fields: BTreeSet::new() };
            names.check(&tree)?;
            let is_never_bool = types::is_never_bool(&tree, variable);
            rewrite(&mut tree);
            Ok((tree, names.fields, is_never_bool))
        };
        // However it ends, a tree that is too deep is dropped there too.
        let thread = std::thread::Builder::new().stack_size(PARSER_STACK).spawn(parse);
        let parsed = thread.map_err(|error| format!("no thread to parse it: {error}"))?.join();
        let (tree, fields, is_never_bool) = parsed.unwrap_or_else(|_| {
            Err("compilation failed: the parser cannot cope with it".to_owned())
        })?;
        Ok(Self { source: source.to_owned(), tree, fields, is_never_bool })
    }

    /// True when the expression selects `field` of its variable.
    pub(super) fn selects(&self, field: &str) -> bool {
        self.fields.contains(field)
    }

    /// Its value; an error names the expression.
    pub(super) fn evaluate(&self, scope: &Scope<'_>) -> Result<Value, String> {
        LEFT.set((STEPS_MAX, Instant::now().checked_add(TIME_MAX)));
        // The library may panic on what it has not met before; its state is gone with the scope.
        let result = catch_unwind(AssertUnwindSafe(|| Value::resolve(&self.tree, &scope.0)));
        let reason = match result {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => shortened(error.to_string(), ERROR_CHARACTERS_MAX),
            Err(_) => "it cannot be evaluated".to_owned(),
        };
        Err(format!("expression '{}' resulted in error: {reason}", self.source))
    }

    /// Its value, which must be a boolean.
    pub(super) fn evaluate_bool(&self, scope: &Scope<'_>) -> Result<bool, String> {
        match self.evaluate(scope)? {
            Value::Bool(value) => Ok(value),
            _ => Err("validation expression must return a boolean".to_owned()),
        }
    }

    /// Its value, which must be a text.
    pub(super) fn evaluate_text(&self, scope: &Scope<'_>, what: &str) -> Result<String, String> {
        match self.evaluate(scope)? {
            Value::String(text) => Ok(text.as_ref().clone()),
            _ => Err(format!("{what} claim expression must return a string")),
        }
    }

    /// Its value, which must be a text or a list of texts or null; empty ones do not count.
    pub(super) fn evaluate_texts(&self, scope: &Scope<'_>) -> Result<Vec<String>, String> {
        let mismatch = || "expression must return a string or a list of strings".to_owned();
        let mut texts = match self.evaluate(scope)? {
            Value::Null => Vec::new(),
            Value::String(text) => vec![text.as_ref().clone()],
            Value::List(values) => {
                let text = |value: &Value| match value {
                    Value::String(text) => Ok(text.as_ref().clone()),
                    _ => Err(mismatch()),
                };
                values.iter().map(text).collect::<Result<_, _>>()?
            }
            _ => return Err(mismatch()),
        };
        texts.retain(|text| !text.is_empty());
        Ok(texts)
    }
}

fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::Number(number) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        serde_json::Value::String(text) => Value::String(Arc::new(text.clone())),
        serde_json::Value::Array(values) => {
            Value::List(Arc::new(values.iter().map(from_json).collect()))
        }
        serde_json::Value::Object(fields) => {
            let field = |(name, value): (&String, &serde_json::Value)| {
                (Key::String(Arc::new(name.clone())), from_json(value))
            };
            let map: HashMap<Key, Value> = fields.iter().map(field).collect();
            Value::Map(Map { map: Arc::new(map) })
        }
    }
}

/// Whether a map has a field; what is no map has none to ask for.
fn has_field(value: Value, field: Arc<String>) -> ResolveResult {
    match value {
        Value::Map(map) => Ok(Value::Bool(map.map.contains_key(&Key::String(field)))),
        _ => Err(ExecutionError::NoSuchOverload),
    }
}

/// Counts a loop's step, and passes its condition on.
fn step(condition: Value) -> ResolveResult {
    let (steps, deadline) = LEFT.get();
    let in_time = deadline.is_some_and(|deadline| Instant::now() < deadline);
    if steps == 0 || !in_time {
        LEFT.set((0, deadline));
        return Err(ExecutionError::function_error("loop", "the expression takes too long"));
    }
    LEFT.set((steps - 1, deadline));
    Ok(condition)
}

/// Passes on what is not too large.
fn bounded(value: Value) -> ResolveResult {
    let mut left = SIZE_MAX;
    if fits(&value, &mut left) {
        Ok(value)
    } else {
        Err(ExecutionError::function_error("value", "what the expression makes is too large"))
    }
}

fn fits(value: &Value, left: &mut usize) -> bool {
    let own = match value {
        Value::String(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        _ => 1,
    };
    let Some(rest) = left.checked_sub(own) else { return false };
    *left = rest;
    match value {
        Value::List(values) => values.iter().all(|value| fits(value, left)),
        Value::Map(map) => map.map.values().all(|value| fits(value, left)),
        _ => true,
    }
}

/// The parts of an expression, each once.
fn parts(expression: &IdedExpr) -> Vec<&IdedExpr> {
    match &expression.expr {
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::Comprehension(all) => {
            vec![&all.iter_range, &all.accu_init, &all.loop_cond, &all.loop_step, &all.result]
        }
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(map) => {
            let entries = map.entries.iter().map(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
                EntryExpr::StructField(field) => vec![&field.value],
            });
            entries.flatten().collect()
        }
        Expr::Select(select) => vec![&select.operand],
        Expr::Struct(_) | Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => Vec::new(),
    }
}

/// What is nested too deep is not given to the parser, which takes long over brackets that are not
/// closed. Those in texts count as well: nobody needs that many.
fn check_nesting(source: &str) -> Result<(), String> {
    let mut open = 0_usize;
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > DEPTH_MAX {
            return Err(format!("compilation failed: more than {DEPTH_MAX} open brackets"));
        }
    }
    Ok(())
}

fn check_depth(expression: &IdedExpr, left: usize) -> Result<(), String> {
    let Some(left) = left.checked_sub(1) else {
        return Err(format!("compilation failed: more than {DEPTH_MAX} levels"));
    };
    parts(expression).into_iter().try_for_each(|part| check_depth(part, left))
}

/// Checks the names that an expression uses, as a compiler would.
struct Names {
    variable: &'static str,
    /// Names of the loops around what is looked at.
    bound: Vec<String>,
    /// Fields that are selected of the variable.
    fields: BTreeSet<String>,
}

impl Names {
    fn check(&mut self, expression: &IdedExpr) -> Result<(), String> {
        match &expression.expr {
            Expr::Ident(name) => self.variable(name),
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(all) => {
                self.check(&all.iter_range)?;
                self.check(&all.accu_init)?;
                let outside = self.bound.len();
                self.bound.extend([all.iter_var.clone(), all.accu_var.clone()]);
                self.bound.extend(all.iter_var2.clone());
                for part in [&all.loop_cond, &all.loop_step, &all.result] {
                    self.check(part)?;
                }
                self.bound.truncate(outside);
                Ok(())
            }
            Expr::Select(select) => {
                self.note_field(&select.operand, &select.field);
                self.check(&select.operand)
            }
            Expr::Struct(made) => Err(format!(
                "compilation failed: undeclared reference to '{}': messages cannot be made here",
                made.type_name
            )),
            Expr::Unspecified => Err("compilation failed: an empty part".to_owned()),
            Expr::List(_) | Expr::Map(_) | Expr::Literal(_) => {
                parts(expression).into_iter().try_for_each(|part| self.check(part))
            }
        }
    }

    fn variable(&self, name: &str) -> Result<(), String> {
        if name == self.variable || self.bound.iter().any(|bound| bound == name) {
            return Ok(());
        }
        Err(format!("compilation failed: undeclared reference to '{name}'"))
    }

    fn call(&mut self, call: &CallExpr) -> Result<(), String> {
        if let (operators::OPT_SELECT, [operand, field]) = (&*call.func_name, &*call.args)
            && let Some(field) = text(field)
        {
            self.note_field(operand, field);
        }
        // A namespace such as `sets` is no variable.
        let qualified = match call.target.as_deref().map(|target| &target.expr) {
            Some(Expr::Ident(prefix)) => is_function(&format!("{prefix}.{}", call.func_name)),
            _ => false,
        };
        if !qualified {
            if !is_operator(&call.func_name) && !is_function(&call.func_name) {
                return Err(format!(
                    "compilation failed: undeclared reference to '{}'",
                    call.func_name
                ));
            }
            call.target.as_deref().map_or(Ok(()), |target| self.check(target))?;
        }
        call.args.iter().try_for_each(|argument| self.check(argument))
    }

    fn note_field(&mut self, operand: &IdedExpr, field: &str) {
        if matches!(&operand.expr, Expr::Ident(name) if name == self.variable) {
            self.fields.insert(field.to_owned());
        }
    }
}

fn is_operator(name: &str) -> bool {
    name.starts_with(['_', '!', '-', '@'])
}

/// A call without arguments fails in a way that tells a function from what is none.
fn is_function(name: &str) -> bool {
    let call = CallExpr { func_name: name.to_owned(), target: None, args: Vec::new() };
    let call = IdedExpr { id: 0, expr: Expr::Call(call) };
    let called = catch_unwind(|| Value::resolve(&call, &FUNCTIONS));
    !matches!(called, Ok(Err(ExecutionError::UndeclaredReference(found))) if *found == name)
}

fn text(expression: &IdedExpr) -> Option<&str> {
    match &expression.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

/// Puts stricter and bounded operations in the place of the library's.
fn rewrite(expression: &mut IdedExpr) {
    match &mut expression.expr {
        Expr::Select(select) => {
            rewrite(&mut select.operand);
            *expression = strict(std::mem::take(select));
        }
        Expr::Call(call) => {
            call.target.as_deref_mut().into_iter().chain(&mut call.args).for_each(rewrite);
            match call.func_name.as_str() {
                // An error of what the library does for a missing field; its index knows better.
                operators::OPT_SELECT => {
                    operators::OPT_INDEX.clone_into(&mut call.func_name);
                    if let Some(field) = call.args.last_mut()
                        && let Some(plain) = text(field).and_then(unescaped)
                    {
                        field.expr = Expr::Literal(LiteralValue::String(plain.as_str().into()));
                    }
                }
                operators::ADD => wrap(expression, BOUNDED),
                name if !is_operator(name) => wrap(expression, BOUNDED),
                _ => {}
            }
        }
        Expr::Comprehension(all) => {
            for part in [&mut all.iter_range, &mut all.accu_init, &mut all.loop_step] {
                rewrite(part);
            }
            rewrite(&mut all.loop_cond);
            wrap(&mut all.loop_cond, STEP);
            rewrite(&mut all.result);
            wrap(&mut all.result, BOUNDED);
        }
        Expr::List(list) => {
            list.elements.iter_mut().for_each(rewrite);
            wrap(expression, BOUNDED);
        }
        Expr::Map(map) => {
            for entry in &mut map.entries {
                if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                    rewrite(&mut entry.key);
                    rewrite(&mut entry.value);
                }
            }
            wrap(expression, BOUNDED);
        }
        Expr::Ident(_) | Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => {}
    }
}

fn wrap(expression: &mut IdedExpr, function: &str) {
    let id = expression.id;
    let args = vec![std::mem::take(expression)];
    let call = CallExpr { func_name: function.to_owned(), target: None, args };
    *expression = IdedExpr { id, expr: Expr::Call(call) };
}

/// `a.b` as `a["b"]`, and `has(a.b)` as a question to maps only.
fn strict(select: SelectExpr) -> IdedExpr {
    let function = if select.test { HAS_FIELD } else { operators::INDEX };
    let field = unescaped(&select.field).unwrap_or(select.field);
    let literal = LiteralValue::String(field.as_str().into());
    let id = select.operand.id;
    let args = vec![*select.operand, IdedExpr { id, expr: Expr::Literal(literal) }];
    let call = CallExpr { func_name: function.to_owned(), target: None, args };
    IdedExpr { id, expr: Expr::Call(call) }
}

/// The field that an escaped name means (`k8s.io/apiserver/pkg/cel`), as in
/// `claims.example__dot__com`.
fn unescaped(name: &str) -> Option<String> {
    const ESCAPES: [(&str, &str); 4] =
        [("__underscores__", "__"), ("__dot__", "."), ("__dash__", "-"), ("__slash__", "/")];
    const KEYWORDS: [&str; 16] = [
        "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for",
        "function", "if", "import", "let", "loop", "package",
    ];
    const MORE_KEYWORDS: [&str; 5] = ["namespace", "return", "var", "void", "while"];
    let keyword = name.strip_prefix("__").and_then(|name| name.strip_suffix("__"));
    if let Some(keyword) =
        keyword.filter(|word| KEYWORDS.contains(word) || MORE_KEYWORDS.contains(word))
    {
        return Some(keyword.to_owned());
    }
    let mut rest = name;
    let mut plain = String::new();
    'next: while let Some(first) = rest.chars().next() {
        for (escape, character) in ESCAPES {
            if let Some(behind) = rest.strip_prefix(escape) {
                plain.push_str(character);
                rest = behind;
                continue 'next;
            }
        }
        plain.push(first);
        rest = rest.get(first.len_utf8()..).unwrap_or_default();
    }
    (plain != name).then_some(plain)
}

#[cfg(test)]
mod tests;
