# The server over loopback: python3 with nothing but its standard library, and the official client.
find_package(Python3 COMPONENTS Interpreter)
if(Python3_FOUND)
  foreach(part api fields threats load openai client)
    add_test(NAME web_${part} COMMAND ${Python3_EXECUTABLE} -B ${CMAKE_CURRENT_LIST_DIR}/test_${part}.py)
    set_tests_properties(web_${part} PROPERTIES LABELS web TIMEOUT 900 SKIP_RETURN_CODE 77 ENVIRONMENT
      "IMAGE_CHAT=$<TARGET_FILE:image-chat>;DESCRIBE=$<TARGET_FILE:describe>;LV_SOURCE=${PROJECT_SOURCE_DIR};LV_BUILD=${CMAKE_BINARY_DIR};LV_SANITIZE=${LV_SANITIZE}")
  endforeach()
  set_tests_properties(web_load PROPERTIES RUN_SERIAL ON)
endif()
