#pragma once
#include <libxml/xmlversion.h>
// Only changes a structure that we never see; its header clashes with the ICU of Foundation.
#undef LIBXML_ICU_ENABLED
#include <libxml/SAX2.h>
#include <libxml/parser.h>
#include <libxml/parserInternals.h>
#include <libxml/xmlerror.h>
#include <libxml/xmlschemas.h>
#include <string.h>

/// A handler that checks well-formedness and builds no tree.
static inline void sp_xml_handler(xmlSAXHandler *handler) {
  memset(handler, 0, sizeof *handler);
  handler->initialized = XML_SAX2_MAGIC;
}

/// The position of a parser, for a validator's reports.
static inline int sp_xml_locate(void *context, const char **file, unsigned long *line) {
  xmlParserCtxtPtr parser = (xmlParserCtxtPtr)context;
  if (file) *file = NULL;
  if (line) *line = parser->input ? (unsigned long)parser->input->line : 0;
  return 0;
}
