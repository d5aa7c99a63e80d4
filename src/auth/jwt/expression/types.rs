//! What is known of an expression's type without evaluating it: the library has no type checker, and
//! upstream's refuses at load what is never a boolean where one is needed.

use kube_cel::cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, operators};

/// Functions of which none gives a boolean.
const OTHER_FUNCTIONS: [&str; 18] = [
    "size",
    "string",
    "bytes",
    "int",
    "uint",
    "double",
    "dyn",
    "type",
    "split",
    "join",
    "replace",
    "lowerAscii",
    "upperAscii",
    "trim",
    "substring",
    "indexOf",
    "lastIndexOf",
    "sum",
];

/// True when upstream's compiler says that it is no boolean. What `variable` holds has a type that is
/// not known before, which counts as none.
pub(super) fn is_never_bool(expression: &IdedExpr, variable: &str) -> bool {
    match &expression.expr {
        Expr::Literal(literal) => !matches!(literal, LiteralValue::Boolean(_)),
        Expr::List(_) | Expr::Map(_) | Expr::Struct(_) => true,
        Expr::Ident(name) => name == variable,
        Expr::Select(select) => !select.test && is_of(&select.operand, variable),
        Expr::Call(call) => call_is_never_bool(call, variable),
        Expr::Comprehension(_) | Expr::Unspecified => false,
    }
}

fn call_is_never_bool(call: &CallExpr, variable: &str) -> bool {
    match (&*call.func_name, &*call.args) {
        (operators::CONDITIONAL, [_, one, other]) => {
            is_never_bool(one, variable) || is_never_bool(other, variable)
        }
        (
            operators::ADD
            | operators::SUBSTRACT
            | operators::MULTIPLY
            | operators::DIVIDE
            | operators::MODULO
            | operators::NEGATE
            | operators::OPT_SELECT
            | operators::OPT_INDEX,
            _,
        ) => true,
        (operators::INDEX, [from, _]) => is_of(from, variable),
        ("orValue" | "value", _) => call.target.as_ref().is_some_and(|of| is_of(of, variable)),
        (name, _) => OTHER_FUNCTIONS.contains(&name),
    }
}

/// True for what is read out of the variable.
fn is_of(expression: &IdedExpr, variable: &str) -> bool {
    match &expression.expr {
        Expr::Ident(name) => name == variable,
        Expr::Select(select) => is_of(&select.operand, variable),
        Expr::Call(call) => match (&*call.func_name, &*call.args) {
            (operators::INDEX | operators::OPT_SELECT | operators::OPT_INDEX, [from, _]) => {
                is_of(from, variable)
            }
            _ => false,
        },
        _ => false,
    }
}
