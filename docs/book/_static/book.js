// A browser reads no other page of a book that was opened from a folder (file://), so the search lists the pages that
// it found without an excerpt of each. From a web server it shows the excerpts.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
