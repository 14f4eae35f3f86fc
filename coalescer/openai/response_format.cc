#include "coalescer/openai/response_format.h"

#include <utility>

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;
using simdjson::dom::element;

/// Collects the one form that a request asks for.
class FormatReader {
 public:
  explicit FormatReader(JsonFields& fields) : fields_(fields) {}

  void take(OutputFormat format) {
    if (fields_.failed()) return;
    if (format_.kind != OutputKind::kText) {
      return fields_.fail(
          invalid_field(format.field, "`" + format_.field + "` and `" + format.field +
                                          "` are both given; a reply follows one form only"));
    }
    format_ = std::move(format);
  }

  /// A schema as an object, a boolean, or JSON text of an object.
  void schema(JsonFields& from, std::string_view name) {
    const auto value = from.find(name);
    if (!value || from.failed()) return;
    OutputFormat format;
    format.kind = OutputKind::kJsonSchema;
    format.field = from.full_name(name);
    std::string_view text;
    if (value->get(text) == simdjson::SUCCESS) {
      JsonBody body;
      if (body.parse(text)) {
        return from.fail(
            invalid_field(format.field, "`" + format.field +
                                            "` is a string that is no JSON object; it must be a "
                                            "JSON schema"));
      }
      format.schema = to_ordered_json(body.root());
    } else if (value->is_object() || value->is_bool()) {
      format.schema = to_ordered_json(*value);
    } else {
      return from.fail(name, *value, "a JSON schema, which is an object");
    }
    take(std::move(format));
  }

  void pattern(JsonFields& from, std::string_view name, OutputKind kind) {
    if (!from.find(name)) return;
    OutputFormat format;
    format.kind = kind;
    format.field = from.full_name(name);
    from.read(name, format.pattern);
    if (!from.failed() && format.pattern.empty()) {
      return from.fail(invalid_field(
          format.field, "`" + format.field + "` is empty; it must be " +
                            (kind == OutputKind::kRegex ? "a regular expression"
                                                        : "a grammar with a rule `root`")));
    }
    if (!from.failed()) take(std::move(format));
  }

  void choice(JsonFields& from, std::string_view name) {
    const auto list = from.array(name);
    if (!list || from.failed()) return;
    OutputFormat format;
    format.kind = OutputKind::kChoice;
    format.field = from.full_name(name);
    for (const element value : *list) {
      std::string_view text;
      if (value.get(text) != simdjson::SUCCESS || text.empty())
        return from.fail(name, value, "a list of strings that are not empty");
      format.choices.emplace_back(text);
    }
    if (format.choices.empty()) {
      return from.fail(invalid_field(
          format.field, "`" + format.field + "` is empty; it must have at least one string"));
    }
    take(std::move(format));
  }

  void json_object(JsonFields& from, std::string_view name) {
    bool wanted = false;
    from.read(name, wanted);
    if (!wanted || from.failed()) return;
    OutputFormat format;
    format.kind = OutputKind::kJsonObject;
    format.field = from.full_name(name);
    take(std::move(format));
  }

  /// `{"format": {...}}`, an object or its JSON text.
  void structural_tag(JsonFields& from, std::string_view name) {
    const auto value = from.find(name);
    if (!value || from.failed()) return;
    JsonBody body;
    std::string_view text;
    simdjson::dom::object object;
    if (value->get(text) == simdjson::SUCCESS) {
      if (body.parse(text)) return from.fail(name, *value, "a structural tag: JSON with `format`");
      object = body.root();
    } else if (value->get(object) != simdjson::SUCCESS) {
      return from.fail(name, *value, "a structural tag: an object with `format`");
    }
    tag_of(from, from.full_name(name), object);
  }

  void tag_of(JsonFields& from, const std::string& name, simdjson::dom::object object) {
    element inner;
    if (object["format"].get(inner) != simdjson::SUCCESS || !inner.is_object()) {
      return from.fail(
          invalid_field(name + ".format",
                        "`" + name + ".format` must be an object, a format of structural tags"));
    }
    OutputFormat format;
    format.kind = OutputKind::kStructuralTag;
    format.field = name;
    format.schema = to_ordered_json(inner);
    take(std::move(format));
  }

  OutputFormat result() { return std::move(format_); }

 private:
  JsonFields& fields_;
  OutputFormat format_;
};

void read_response_format(JsonFields& fields, FormatReader& reader) {
  auto wish = fields.object("response_format");
  if (!wish) return;
  std::string type;
  wish->read("type", type);
  if (!wish->failed() && !wish->find("type")) {
    wish->fail(invalid_field("response_format.type",
                             "`response_format.type` is missing; it must be \"text\", "
                             "\"json_object\", \"json_schema\" or \"structural_tag\""));
  }
  if (wish->failed()) return fields.fail_with(*wish);
  if (type == "text") return;
  JsonFields& format = *wish;
  if (type == "json_object" && !format.find("schema")) {
    OutputFormat any;
    any.kind = OutputKind::kJsonObject;
    any.field = "response_format";
    return reader.take(std::move(any));
  }
  if (type == "json_object") {
    reader.schema(format, "schema");
  } else if (type == "json_schema") {
    auto inner = format.object("json_schema");
    if (!inner) {
      format.fail(invalid_field("response_format.json_schema",
                                "`response_format.json_schema` is missing; it must be an object "
                                "with `name` and `schema`"));
      return fields.fail_with(format);
    }
    bool strict = false;
    inner->read("strict", strict);
    if (!inner->find("schema")) {
      inner->fail(invalid_field(
          "response_format.json_schema.schema",
          "`response_format.json_schema.schema` is missing; it must be a JSON schema"));
    }
    reader.schema(*inner, "schema");
    return fields.fail_with(*inner);
  } else if (type == "structural_tag") {
    reader.tag_of(format, "response_format", format.raw());
  } else {
    format.fail(unsupported_field(
        "response_format.type",
        "`response_format.type` is \"" + type.substr(0, 40) +
            "\"; it must be \"text\", \"json_object\", \"json_schema\" or \"structural_tag\""));
  }
  fields.fail_with(format);
}

/// `text.format`: the same words, a schema beside its `type`.
void read_text_field(JsonFields& fields, FormatReader& reader) {
  auto text = fields.object("text");
  if (!text) return;
  auto format = text->object("format");
  fields.fail_with(*text);
  if (!format || fields.failed()) return;
  std::string type = "text";
  format->read("type", type);
  const std::string name = format->full_name("schema");
  if (type == "json_object") {
    OutputFormat any;
    any.kind = OutputKind::kJsonObject;
    any.field = "text.format";
    reader.take(std::move(any));
  } else if (type == "json_schema") {
    bool strict = false;
    format->read("strict", strict);
    if (!format->find("schema")) {
      format->fail(invalid_field(name, "`" + name + "` is missing; it must be a JSON schema"));
    }
    reader.schema(*format, "schema");
  } else if (type != "text") {
    format->fail(unsupported_field(
        "text.format.type", "`text.format.type` is \"" + type.substr(0, 40) +
                                "\"; it must be \"text\", \"json_object\" or \"json_schema\""));
  }
  fields.fail_with(*format);
}

/// vLLM's fields.
void read_structured_outputs(JsonFields& fields, FormatReader& reader) {
  if (auto wish = fields.object("structured_outputs")) {
    JsonFields& inner = *wish;
    reader.schema(inner, "json");
    reader.pattern(inner, "regex", OutputKind::kRegex);
    reader.choice(inner, "choice");
    reader.pattern(inner, "grammar", OutputKind::kGrammar);
    reader.json_object(inner, "json_object");
    reader.structural_tag(inner, "structural_tag");
    fields.fail_with(inner);
  }
  reader.schema(fields, "guided_json");
  reader.pattern(fields, "guided_regex", OutputKind::kRegex);
  reader.choice(fields, "guided_choice");
  reader.pattern(fields, "guided_grammar", OutputKind::kGrammar);
}

}  // namespace

OutputFormat read_output_format(JsonFields& fields) {
  FormatReader reader(fields);
  read_response_format(fields, reader);
  read_structured_outputs(fields, reader);
  return reader.result();
}

OutputFormat read_text_format(JsonFields& fields) {
  FormatReader reader(fields);
  read_text_field(fields, reader);
  read_structured_outputs(fields, reader);
  return reader.result();
}

}  // namespace thaw::coalescer
