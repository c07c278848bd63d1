#include "CSimdjson.h"

#include <memory>
#include <new>
#include <simdjson.h>

struct sp_json_scanner {
  std::unique_ptr<simdjson::internal::dom_parser_implementation> parser;
};

sp_json_scanner *sp_json_scanner_new(void) { return new (std::nothrow) sp_json_scanner; }

void sp_json_scanner_free(sp_json_scanner *scanner) { delete scanner; }

int sp_json_scan(sp_json_scanner *scanner, const uint8_t *bytes, size_t length, const uint32_t **offsets, size_t *count) {
  if (!scanner->parser || scanner->parser->capacity() < length) {
    scanner->parser.reset();
    if (simdjson::get_active_implementation()->create_dom_parser_implementation(length < 65536 ? 65536 : length, 8, scanner->parser))
      return 5;
  }
  switch (scanner->parser->stage1(bytes, length, simdjson::stage1_mode::regular)) {
    case simdjson::SUCCESS:
      *offsets = scanner->parser->structural_indexes.get();
      *count = scanner->parser->n_structural_indexes;
      return 0;
    case simdjson::UTF8_ERROR: return 1;
    case simdjson::UNCLOSED_STRING: return 2;
    case simdjson::UNESCAPED_CHARS: return 3;
    case simdjson::EMPTY: return 4;
    default: return 5;
  }
}

int sp_is_utf8(const uint8_t *bytes, size_t length) {
  return simdjson::validate_utf8(reinterpret_cast<const char *>(bytes), length);
}
