// Swagger UI over our own document; without `validatorUrl: null` it would ask a validator on the internet.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null });
