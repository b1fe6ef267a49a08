# The web page in Chromium: against a mock of the server, which can be made to do anything, and against the server.
# Under a sanitizer only what the server is made to do there counts.
set(command ${CMAKE_CURRENT_LIST_DIR}/run.sh ${CMAKE_BINARY_DIR}/tests/web)
if(LV_SANITIZE)
  add_test(NAME web_page_served COMMAND ${command} ${CMAKE_CURRENT_LIST_DIR}/real.test.mjs)
else()
  add_test(NAME web_page COMMAND ${command})
  add_test(NAME web_page_served COMMAND ${command})
  set_tests_properties(web_page PROPERTIES LABELS web SKIP_RETURN_CODE 77 TIMEOUT 900 RESOURCE_LOCK browser
    ENVIRONMENT "IMAGE_CHAT=")
endif()
set_tests_properties(web_page_served PROPERTIES LABELS web SKIP_RETURN_CODE 77 TIMEOUT 900 RESOURCE_LOCK browser
  ENVIRONMENT "IMAGE_CHAT=$<TARGET_FILE:image-chat>")
