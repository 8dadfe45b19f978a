//! The tokens of a template to its expressions, by Jinja's grammar.

use super::fault::{Fault, fail};
use super::lexer::Token;
use super::parser::Parser;
use super::tree::{Arguments, Comparison, Conditional, Expression, Operator, Suffix, Test};
use super::value::Value;

impl Parser {
    /// An expression, or several with commas between them; `conditions`: whether `a if b` may come.
    pub(super) fn tuple(&mut self, conditions: bool) -> Result<Expression, Fault> {
        let one = |parser: &mut Self| match conditions {
            true => parser.expression(),
            false => parser.deeper(Self::or),
        };
        let first = one(self)?;
        if !self.sees(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.takes(",") {
            if matches!(self.peek(), Some(Token::Close | Token::Sign(")" | "]" | "="))) {
                break;
            }
            items.push(one(self)?);
        }
        Ok(Expression::Tuple(items))
    }

    pub(super) fn expression(&mut self) -> Result<Expression, Fault> {
        self.deeper(|parser| {
            let mut found = parser.or()?;
            while parser.takes_word("if") {
                let condition = parser.or()?;
                let otherwise = match parser.takes_word("else") {
                    true => Some(parser.expression()?),
                    false => None,
                };
                let whole = Conditional { condition, then: found, otherwise };
                found = Expression::Conditional(Box::new(whole));
                if parser.sees_word("if") {
                    return fail("`if` follows `if` without brackets");
                }
            }
            Ok(found)
        })
    }

    pub(super) fn or(&mut self) -> Result<Expression, Fault> {
        let mut parts = vec![self.and()?];
        while self.takes_word("or") {
            parts.push(self.and()?);
        }
        Ok(only_or(parts, Expression::Or))
    }

    fn and(&mut self) -> Result<Expression, Fault> {
        let mut parts = vec![self.not()?];
        while self.takes_word("and") {
            parts.push(self.not()?);
        }
        Ok(only_or(parts, Expression::And))
    }

    fn not(&mut self) -> Result<Expression, Fault> {
        if self.takes_word("not") {
            return Ok(Expression::Not(Box::new(self.deeper(Self::not)?)));
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<Expression, Fault> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        while let Some(comparison) = self.comparison() {
            rest.push((comparison, self.sum()?));
        }
        Ok(match rest.is_empty() {
            true => first,
            false => Expression::Compare(Box::new(first), rest),
        })
    }

    fn comparison(&mut self) -> Option<Comparison> {
        let (found, length) = match self.peek()? {
            Token::Sign("==") => (Comparison::Equal, 1),
            Token::Sign("!=") => (Comparison::NotEqual, 1),
            Token::Sign("<") => (Comparison::Less, 1),
            Token::Sign("<=") => (Comparison::LessOrEqual, 1),
            Token::Sign(">") => (Comparison::Greater, 1),
            Token::Sign(">=") => (Comparison::GreaterOrEqual, 1),
            Token::Name(word) if word == "in" => (Comparison::In, 1),
            Token::Name(word) if word == "not" => match self.tokens.get(self.at + 1) {
                Some((_, Token::Name(word))) if word == "in" => (Comparison::NotIn, 2),
                _ => return None,
            },
            _ => return None,
        };
        self.at += length;
        Some(found)
    }

    fn sum(&mut self) -> Result<Expression, Fault> {
        self.chain(Self::concatenation, &[("+", Operator::Add), ("-", Operator::Subtract)])
    }

    fn concatenation(&mut self) -> Result<Expression, Fault> {
        self.chain(Self::product, &[("~", Operator::Concatenate)])
    }

    fn product(&mut self) -> Result<Expression, Fault> {
        let operators = [
            ("*", Operator::Multiply),
            ("/", Operator::Divide),
            ("//", Operator::FloorDivide),
            ("%", Operator::Remainder),
        ];
        self.chain(Self::power, &operators)
    }

    fn power(&mut self) -> Result<Expression, Fault> {
        self.chain(|parser| parser.unary(true), &[("**", Operator::Power)])
    }

    fn chain(
        &mut self,
        operand: impl Fn(&mut Self) -> Result<Expression, Fault>,
        operators: &[(&str, Operator)],
    ) -> Result<Expression, Fault> {
        let first = operand(self)?;
        let mut rest = Vec::new();
        while let Some(&(_, operator)) = operators.iter().find(|(sign, _)| self.sees(sign)) {
            self.at += 1;
            rest.push((operator, operand(self)?));
        }
        Ok(match rest.is_empty() {
            true => first,
            false => Expression::Arithmetic(Box::new(first), rest),
        })
    }

    fn unary(&mut self, filters: bool) -> Result<Expression, Fault> {
        let base = if self.takes("-") {
            Expression::Negative(Box::new(self.deeper(|parser| parser.unary(false))?))
        } else if self.takes("+") {
            Expression::Positive(Box::new(self.deeper(|parser| parser.unary(false))?))
        } else {
            self.primary()?
        };
        let mut suffixes = Vec::new();
        self.postfix(&mut suffixes)?;
        loop {
            if !filters {
                break;
            }
            if self.takes("|") {
                suffixes.push(self.filter()?);
            } else if self.takes_word("is") {
                suffixes.push(Suffix::Test(self.test()?));
            } else if self.takes("(") {
                suffixes.push(Suffix::Call(self.arguments()?));
            } else {
                break;
            }
        }
        Ok(match suffixes.is_empty() {
            true => base,
            false => Expression::Postfix(Box::new(base), suffixes),
        })
    }

    fn postfix(&mut self, found: &mut Vec<Suffix>) -> Result<(), Fault> {
        loop {
            if self.takes(".") {
                found.push(match self.next() {
                    Some(Token::Name(name)) => Suffix::Attribute(name.into()),
                    Some(Token::Int(number)) => {
                        Suffix::Item(Expression::Constant(Value::Int(number)))
                    }
                    _ => return fail("a name is missing after `.`"),
                });
            } else if self.takes("[") {
                found.push(self.deeper(Self::subscript)?);
            } else if self.takes("(") {
                found.push(Suffix::Call(self.arguments()?));
            } else {
                return Ok(());
            }
        }
    }

    fn subscript(&mut self) -> Result<Suffix, Fault> {
        let mut parts = [None, None, None];
        let mut colons = 0;
        while !self.takes("]") {
            if self.takes(":") {
                colons += 1;
            } else if colons <= 2 && parts[colons].is_none() {
                parts[colons] = Some(self.tuple(true)?);
            } else {
                return fail("the subscript is not understood");
            }
        }
        match (colons, parts) {
            (0, [Some(item), ..]) => Ok(Suffix::Item(item)),
            (1 | 2, parts) => Ok(Suffix::Slice(Box::new(parts))),
            _ => fail("the subscript is not understood"),
        }
    }

    /// Arguments after their opening bracket.
    pub(super) fn arguments(&mut self) -> Result<Arguments, Fault> {
        let mut found = Arguments::default();
        let mut first = true;
        while !self.takes(")") {
            if !std::mem::take(&mut first) {
                self.wants(",")?;
                if self.takes(")") {
                    break;
                }
            }
            let named = matches!(self.tokens.get(self.at + 1), Some((_, Token::Sign("="))));
            if named && matches!(self.peek(), Some(Token::Name(_))) {
                let name = self.name()?;
                self.wants("=")?;
                found.named.push((name, self.expression()?));
            } else if self.takes("*") {
                found.rest = Some(Box::new(self.expression()?));
            } else if self.takes("**") {
                found.rest_named = Some(Box::new(self.expression()?));
            } else {
                found.positional.push(self.expression()?);
            }
        }
        Ok(found)
    }

    fn test(&mut self) -> Result<Test, Fault> {
        let negated = self.takes_word("not");
        let name = match self.next() {
            Some(Token::Name(name)) => name.into(),
            _ => return fail("the name of a test is missing after `is`"),
        };
        let mut arguments = Arguments::default();
        let begins = match self.peek() {
            Some(Token::Name(word)) => !matches!(word.as_str(), "else" | "or" | "and" | "is"),
            Some(Token::String(_) | Token::Int(_) | Token::Float(_)) => true,
            Some(Token::Sign(sign)) => matches!(*sign, "[" | "{"),
            _ => false,
        };
        if self.takes("(") {
            arguments = self.arguments()?;
        } else if begins {
            let base = self.deeper(Self::primary)?;
            let mut suffixes = Vec::new();
            self.postfix(&mut suffixes)?;
            arguments.positional.push(Expression::Postfix(Box::new(base), suffixes));
        }
        Ok(Test { name, arguments, negated })
    }

    fn primary(&mut self) -> Result<Expression, Fault> {
        Ok(match self.next() {
            Some(Token::Name(name)) => match name.as_str() {
                "true" | "True" => Expression::Constant(Value::Bool(true)),
                "false" | "False" => Expression::Constant(Value::Bool(false)),
                "none" | "None" => Expression::Constant(Value::None),
                _ => Expression::Name(name.into()),
            },
            Some(Token::String(mut text)) => {
                while let Some(Token::String(more)) = self.peek() {
                    text.push_str(more);
                    self.at += 1;
                }
                Expression::Constant(Value::Text(text.into()))
            }
            Some(Token::Int(number)) => Expression::Constant(Value::Int(number)),
            Some(Token::Float(number)) => Expression::Constant(Value::Float(number)),
            Some(Token::Sign("(")) => self.deeper(Self::bracketed)?,
            Some(Token::Sign("[")) => Expression::List(self.deeper(|parser| parser.items("]"))?),
            Some(Token::Sign("{")) => self.deeper(Self::dict)?,
            Some(Token::Sign(sign)) => {
                return fail(format!("`{sign}` stands where a value should"));
            }
            _ => return fail("a value is missing"),
        })
    }

    fn bracketed(&mut self) -> Result<Expression, Fault> {
        if self.takes(")") {
            return Ok(Expression::Tuple(Vec::new()));
        }
        let found = self.tuple(true)?;
        self.wants(")")?;
        Ok(found)
    }

    fn items(&mut self, end: &str) -> Result<Vec<Expression>, Fault> {
        let mut found = Vec::new();
        while !self.takes(end) {
            if !found.is_empty() {
                self.wants(",")?;
                if self.takes(end) {
                    break;
                }
            }
            found.push(self.expression()?);
        }
        Ok(found)
    }

    fn dict(&mut self) -> Result<Expression, Fault> {
        let mut found = Vec::new();
        while !self.takes("}") {
            if !found.is_empty() {
                self.wants(",")?;
                if self.takes("}") {
                    break;
                }
            }
            let key = self.expression()?;
            self.wants(":")?;
            found.push((key, self.expression()?));
        }
        Ok(Expression::Dict(found))
    }
}

fn only_or(
    mut parts: Vec<Expression>,
    several: impl FnOnce(Vec<Expression>) -> Expression,
) -> Expression {
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        last => {
            parts.extend(last);
            several(parts)
        }
    }
}
